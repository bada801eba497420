// An upgrade of the proxy under an open notebook.

import assert from 'node:assert/strict';
import { after, test } from 'node:test';

import { launchBrowser, needsBrowser, newNotebook, openSignedIn, runCell, withPage } from '../support/browser.js';
import { freePort, sharedInstance } from '../support/instance.js';
import { Services } from '../support/service.js';

const GRACE = 2_000;

const instance = await sharedInstance();
const services = new Services(instance, 'upgrade-notebook');
let passed = false;
after(() => services.remove(passed));
let browser;
if (!needsBrowser.skip) {
  browser = await launchBrowser(instance);
  after(() => browser.close());
}
const lab = instance.workload('lab') ? {} : { skip: 'the instance has no `lab`: JupyterLab needs Python' };

test('a notebook that is open during an upgrade runs its next cell', { ...needsBrowser, ...lab, timeout: 300_000 }, async () => {
  const host = new URL(instance.url('lab')).hostname;
  const [port, admin] = [await freePort(), await freePort()];
  const first = await services.start('proxy', admin, await services.proxySettings({ host, port, admin, grace: GRACE }));
  // The proxy of this test has a certificate of its own.
  await withPage(browser, 'upgrade-notebook', { ignoreHTTPSErrors: true }, async (page) => {
    await openSignedIn(page, instance, instance.user('alice'), instance.url('lab', '/lab?reset'));
    // Cookies belong to a host and not to a port: the session is the same.
    await page.goto(`https://${host}:${port}/lab?reset`);
    await newNotebook(page);
    await runCell(page, 0, 'kept = 6 * 7; print("before")');
    await page.locator('.jp-OutputArea-output').first().waitFor({ timeout: 60_000 });

    const kernel = page.waitForEvent('websocket', { predicate: (socket) => /\/channels/.test(socket.url()), timeout: 60_000 });
    const next = await services.handOver('proxy', first);
    await services.ended(first, GRACE + 20_000);
    await kernel;

    await runCell(page, 1, 'print(kept)');
    const output = page.locator('.jp-OutputArea-output').nth(1);
    await output.waitFor({ timeout: 60_000 });
    assert.equal((await output.innerText()).trim(), '42');
    await services.stop(next.pid, GRACE + 20_000);
  });
  passed = true;
});
