// JupyterLab with a terminal open and nobody there. Longer than the minute after which most proxies
// cut a silent stream; DORMOUSE_E2E_QUIET_MINUTES=12 also outlasts the access token's ten minutes.

import assert from 'node:assert/strict';
import { setTimeout as pause } from 'node:timers/promises';
import { after, test } from 'node:test';

import { fillSignIn, launchBrowser, needsBrowser, withPage } from '../support/browser.js';
import { until } from '../support/deadline.js';
import { sharedInstance } from '../support/instance.js';

const instance = await sharedInstance();
const minutes = Number(process.env.DORMOUSE_E2E_QUIET_MINUTES ?? 1.5);
const WITHIN = 90_000;
let browser;
const needsLab = instance.workload('lab') ? needsBrowser : { skip: 'JupyterLab needs Python' };
if (!needsLab.skip) {
  browser = await launchBrowser(instance);
  after(() => browser.close());
}

test(`a terminal is open and quiet for ${minutes} minutes`, { ...needsLab, timeout: minutes * 60_000 + 240_000 }, async (t) => {
  await withPage(browser, 'quiet-terminal', {}, async (page, context) => {
    const sockets = [];
    page.on('websocket', (socket) => {
      if (!socket.url().includes('/terminals/websocket/')) return;
      const kept = { socket, shown: '' };
      sockets.push(kept);
      socket.on('framereceived', ({ payload }) => {
        const [what, text] = JSON.parse(payload.toString());
        if (what === 'stdout') kept.shown += text;
      });
    });
    await page.goto(instance.url('lab', '/lab?reset'));
    await fillSignIn(page, instance.user('alice'));
    await page.locator('.jp-LauncherCard[title="Start a new terminal session"]').click({ timeout: WITHIN });
    const screen = page.locator('.jp-Terminal .xterm');
    await screen.waitFor({ timeout: WITHIN });
    const says = async (command, answer) => {
      await screen.click();
      await page.keyboard.type(`${command}\n`);
      await until(`the terminal to show ${answer}`, () => sockets.at(-1)?.shown.includes(answer), { within: WITHIN });
    };
    await until('the prompt', () => sockets.at(-1)?.shown !== '' && sockets.length > 0, { within: WITHIN });
    await says('echo before-$((6*7))', 'before-42');

    const cookie = async () => {
      const all = await context.cookies(instance.url('lab'));
      return all.find(({ name }) => name === '__Host-dormouse')?.value;
    };
    const earlier = await cookie();
    await pause(minutes * 60_000);
    t.diagnostic(`the access token was ${(await cookie()) === earlier ? 'the same' : 'renewed'}`);
    assert.equal(sockets.length, 1, 'one socket, from the beginning to the end');
    assert.equal(sockets[0].socket.isClosed(), false);
    await says('echo behind-$((6*7))', 'behind-42');
    assert.equal(sockets.length, 1);
  });
});
