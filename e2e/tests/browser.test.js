// A person with a browser.

import assert from 'node:assert/strict';
import { after, test } from 'node:test';

import { fillSignIn, launchBrowser, needsBrowser, newNotebook, openSignedIn, picture, runCell, withPage } from '../support/browser.js';
import { sharedInstance } from '../support/instance.js';

const instance = await sharedInstance();
const alice = instance.user('alice');
let browser;
if (!needsBrowser.skip) {
  browser = await launchBrowser(instance);
  after(() => browser.close());
}

/** Skips when there is no browser, or no workload to look at. */
function needsWorkload(name) {
  if (needsBrowser.skip) return needsBrowser;
  const skip = `the instance has no \`${name}\`: JupyterLab and Streamlit need Python`;
  return instance.workload(name) ? {} : { skip };
}

test('the sign-in page fits a phone', needsBrowser, async () => {
  const phone = { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true };
  await withPage(browser, 'sign-in-phone', phone, async (page) => {
    await page.goto(instance.url('echo'));
    const password = page.locator('input[type=password]');
    await password.waitFor();
    const { content, window } = await page.evaluate(() => ({
      content: document.scrollingElement.scrollWidth,
      window: globalThis.innerWidth,
    }));
    assert.ok(content <= window, `the page is ${content} wide in a window of ${window}`);
    const { height, width } = await password.boundingBox();
    assert.ok(height >= 40 && width >= 250, `a finger hits a field of ${width} by ${height}`);
    const size = await password.evaluate((field) => Number.parseFloat(getComputedStyle(field).fontSize));
    assert.ok(size >= 16, 'a phone zooms in on a field with smaller letters');
    await picture(page, 'sign-in-phone');
  });
});

test('what follows # is still there after signing in, also when the password was mistyped', needsBrowser, async () => {
  await withPage(browser, 'fragment', {}, async (page) => {
    const url = `${instance.url('echo')}runs?x=1#/experiments/7`;
    await page.goto(url);
    await fillSignIn(page, { name: 'alice', password: 'not the password' });
    await page.getByRole('alert').waitFor();
    await fillSignIn(page, alice);
    await page.waitForURL((now) => now.hostname === new URL(url).hostname);
    assert.equal(page.url(), url);
  });
});

test('the account page lists where somebody is signed in, fits a phone and needs no JavaScript', needsBrowser, async () => {
  const phone = { viewport: { width: 390, height: 844 }, isMobile: true, hasTouch: true, javaScriptEnabled: false };
  const account = `${instance.ready.issuer.replace(/\/$/, '')}/account`;
  await withPage(browser, 'account-elsewhere', {}, async (elsewhere) => {
    await elsewhere.goto(account);
    await fillSignIn(elsewhere, alice);
    await elsewhere.getByText('(this browser)').waitFor();
    await withPage(browser, 'account-phone', phone, async (page) => {
      await page.goto(account);
      await fillSignIn(page, alice);
      const others = page.locator('form[action="/account/sessions/end-others"] button');
      const { height } = await others.boundingBox();
      assert.ok(height >= 40, `a finger hits a button of ${height}`);
      await others.click();
      await page.getByText('(this browser)').waitFor();
      assert.equal(await others.count(), 0, 'nobody else is left');
    });
    await elsewhere.reload();
    await elsewhere.locator('input[type=password]').waitFor();
  });
});

test('a wrong password says so and asks again', needsBrowser, async () => {
  await withPage(browser, 'wrong-password', {}, async (page) => {
    await page.goto(instance.url('echo'));
    await picture(page, 'sign-in');
    await fillSignIn(page, { name: 'alice', password: 'not the password' });
    await page.getByRole('alert').waitFor();
    assert.equal(new URL(page.url()).origin, new URL(instance.ready.issuer).origin);
    await fillSignIn(page, alice);
    await page.waitForURL((now) => now.hostname === new URL(instance.url('echo')).hostname);
  });
});

test('alice runs print(6*7) in a new notebook and sees 42', { ...needsWorkload('lab'), timeout: 180_000 }, async () => {
  await withPage(browser, 'lab', {}, async (page) => {
    await openSignedIn(page, instance, alice, instance.url('lab', '/lab?reset'));
    await newNotebook(page);
    await runCell(page, 0, 'print(6*7)');
    const output = page.locator('.jp-OutputArea-output').first();
    await output.waitFor({ timeout: 90_000 });
    assert.equal((await output.innerText()).trim(), '42');
    await refuseNews(page);
    await picture(page, 'lab');
  });
});

/** JupyterLab asks a newcomer whether it may show news: not in our picture. */
async function refuseNews(page) {
  const question = page.locator('.Toastify__toast');
  const no = question.getByRole('button', { name: 'No', exact: true });
  if (await no.isVisible()) {
    await no.click();
    await question.waitFor({ state: 'detached' });
  }
}

test('alice moves a slider of the dashboard and the page changes', { ...needsWorkload('dashboard'), timeout: 120_000 }, async () => {
  await withPage(browser, 'dashboard', {}, async (page) => {
    await openSignedIn(page, instance, alice, instance.url('dashboard'));
    const slider = page.getByRole('slider', { name: 'Learning rate' });
    await slider.waitFor({ timeout: 60_000 });
    const steps = page.getByTestId('stMetricValue').nth(1);
    const before = await steps.innerText();
    await slider.focus();
    for (let step = 0; step < 20; step += 1) await page.keyboard.press('ArrowRight');
    await page.getByText('At a learning rate of 0.25').waitFor();
    assert.notEqual(await steps.innerText(), before);
    await page.getByTestId('stVegaLiteChart').waitFor();
    await picture(page, 'dashboard');
  });
});

test('one sign-in is enough for all hosts', { ...needsWorkload('dashboard'), timeout: 120_000 }, async () => {
  await withPage(browser, 'single-sign-on', {}, async (page) => {
    await openSignedIn(page, instance, alice, instance.url('echo'));
    await page.goto(instance.url('dashboard'));
    assert.equal(new URL(page.url()).hostname, new URL(instance.url('dashboard')).hostname);
    await page.getByRole('slider', { name: 'Learning rate' }).waitFor({ timeout: 60_000 });
  });
});

test('sixteen tabs that a browser restores need one sign-in', { ...needsBrowser, timeout: 120_000 }, async () => {
  await withPage(browser, 'sixteen-tabs', {}, async (page, context) => {
    const tabs = [page];
    while (tabs.length < 16) tabs.push(await context.newPage());
    for (const [n, tab] of tabs.entries()) await tab.goto(instance.url('echo', `/tab/${n}`));
    for (const tab of [tabs[0], tabs[15]]) {
      const path = `/tab/${tabs.indexOf(tab)}`;
      await fillSignIn(tab, alice);
      await tab.waitForURL(instance.url('echo', path));
      assert.match(await tab.innerText('body'), new RegExp(`"${path}"`));
    }
  });
});

test('the portal lists what is alice\'s, and opens it', needsBrowser, async () => {
  await withPage(browser, 'portal', {}, async (page) => {
    await openSignedIn(page, instance, alice, instance.ready.portal);
    for (const { name, url } of instance.ready.workloads) {
      const link = page.locator(`a[href="${url}"], a[href="${url.replace(/\/$/, '')}"]`).first();
      await link.waitFor();
      assert.ok((await page.locator('body').innerText()).includes(name));
    }
    await picture(page, 'portal');
    await page.getByRole('link', { name: 'Your account' }).click();
    await page.getByRole('heading', { name: 'Your account' }).waitFor();
    assert.equal(page.url(), `${instance.ready.issuer}/account`);
  });
});

test('bob, signed in, gets 404 on alice\'s hosts', needsBrowser, async () => {
  await withPage(browser, 'bob', {}, async (page) => {
    await page.goto(instance.url('echo'));
    await fillSignIn(page, instance.user('bob'));
    await page.waitForURL((now) => now.hostname === new URL(instance.url('echo')).hostname);
    for (const { name, url } of instance.ready.workloads) {
      const response = await page.goto(url);
      assert.equal(response.status(), 404, name);
    }
    await picture(page, 'not-found');
  });
});
