// What people see: the same checks for every page, at a phone's width and a desktop's, light and dark.

import assert from 'node:assert/strict';
import { readFileSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { after, before, test } from 'node:test';

import { startAuthserver } from '../support/authserver.js';
import { fillSignIn, launchBrowser, look, needsBrowser, withPage } from '../support/browser.js';
import { request } from '../support/client.js';
import { create, remove, resource } from '../support/cluster.js';
import { run } from '../support/command.js';
import { until } from '../support/deadline.js';
import { binary, sharedInstance } from '../support/instance.js';

const instance = await sharedInstance();
const issuer = instance.ready.issuer;
const alice = instance.user('alice');
const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const looks = [
  { viewport: { width: 390, height: 844 }, colorScheme: 'light' },
  { viewport: { width: 390, height: 844 }, colorScheme: 'dark' },
  { viewport: { width: 1280, height: 800 }, colorScheme: 'light' },
  { viewport: { width: 1280, height: 800 }, colorScheme: 'dark' },
];
const partner = 'https://partner.example/cb';
let browser;

before(async () => {
  if (needsBrowser.skip) return;
  browser = await launchBrowser(instance);
  const client = async (id, name, ...more) => {
    const args = ['auth', 'client', 'create', '--data-dir', instance.dataDir, '--id', id, '--name', name, ...more];
    const made = await run(binary, args);
    assert.equal(made.code, 0, made.stderr);
  };
  await client('partner', 'Partner & Co', '--third-party', '--redirect-uri', partner);
  const scopes = ['openid', 'profile', 'email', 'groups', 'workload:use', 'workload:manage'];
  const more = scopes.flatMap((scope) => ['--scope', scope]);
  await client('television', 'The television in the meeting room', '--public', '--grant-type', 'device-code', ...more);
});
after(() => browser?.close());

/** Looks at the page that is open, in every look. */
async function inspect(page, name) {
  for (const { viewport, colorScheme } of looks) {
    await page.setViewportSize(viewport);
    await page.emulateMedia({ colorScheme });
    const where = `${name}, ${viewport.width} px, ${colorScheme}`;
    const facts = await page.evaluate(() => ({
      language: document.documentElement.lang,
      headings: document.querySelectorAll('h1').length,
      title: document.title,
      overflow: document.scrollingElement.scrollWidth - globalThis.innerWidth,
    }));
    assert.equal(facts.language, 'en', where);
    assert.equal(facts.headings, 1, `${where}: one heading of the first level`);
    assert.notEqual(facts.title, '', where);
    assert.ok(facts.overflow <= 0, `${where}: ${facts.overflow} px too wide`);
    // Not as a script of the page, which its policy would refuse.
    await page.evaluate(axe);
    const { violations } = await page.evaluate(() => globalThis.axe.run());
    const told = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(' ')}`);
    assert.deepEqual(told, [], where);
    await look(page, `${name}-${viewport.width}-${colorScheme}`);
  }
}

/** Everything that Tab reaches, in order, each with a visible outline. */
async function tabStops(page) {
  // From the top of the page, whatever had the focus.
  await page.mouse.click(1, 1);
  const stops = [];
  for (;;) {
    await page.keyboard.press('Tab');
    const stop = await page.evaluate(() => {
      const element = document.activeElement;
      if (element === document.body) return undefined;
      const { outlineStyle, outlineWidth } = getComputedStyle(element);
      const text = element.labels?.[0]?.textContent ?? element.textContent;
      return { text: text.trim(), outlined: outlineStyle !== 'none' && Number.parseFloat(outlineWidth) >= 2 };
    });
    if (!stop || stops.length > 30) return stops;
    stops.push(stop);
  }
}

test('pages for people who are not signed in', { ...needsBrowser, timeout: 120_000 }, async () => {
  await withPage(browser, 'pages-signed-out', {}, async (page) => {
    await page.goto(instance.url('echo'));
    await inspect(page, 'sign-in');
    const stops = await tabStops(page);
    assert.deepEqual(stops.map(({ text }) => text), ['Name', 'Password', 'Sign in', 'Sign in with a passkey']);
    assert.ok(stops.every(({ outlined }) => outlined), 'what has the focus is seen to have it');
    const autocomplete = (label) => page.getByLabel(label).getAttribute('autocomplete');
    assert.equal(await autocomplete('Name'), 'username webauthn');
    assert.equal(await autocomplete('Password'), 'current-password');
    await fillSignIn(page, { name: 'alice', password: 'not the password' });
    await page.getByRole('alert').waitFor();
    await inspect(page, 'sign-in-refused');
    await page.goto(`${issuer}/nowhere`);
    await inspect(page, 'error');
    await page.goto(`${issuer}/sign-out`);
    await inspect(page, 'signed-out');
  });
});

test('pages for people who are signed in', { ...needsBrowser, timeout: 180_000 }, async () => {
  await withPage(browser, 'pages-signed-in', {}, async (page) => {
    await page.goto(`${issuer}/account`);
    await fillSignIn(page, alice);
    await page.getByRole('heading', { name: 'Your account' }).waitFor();
    await inspect(page, 'account');
    await page.locator('summary', { hasText: 'New token' }).click();
    await page.locator('summary', { hasText: 'New key' }).click();
    await inspect(page, 'account-forms');
    await page.getByLabel('Name of the new key').fill('laptop');
    await page.getByLabel('What it printed').fill('ssh-ed25519 AAAA');
    await page.getByRole('button', { name: 'Add the key' }).click();
    await page.getByRole('alert').filter({ hasText: 'Run the command' }).waitFor();
    assert.equal(await page.getByLabel('Name of the new key').inputValue(), 'laptop', 'what was typed is kept');
    await inspect(page, 'account-refused');
    await page.goto(issuer);
    await inspect(page, 'home');
    await page.goto(`${issuer}/device`);
    await inspect(page, 'device-code');
    const challenge = 'E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM';
    const query = new URLSearchParams({
      client_id: 'partner', redirect_uri: partner, response_type: 'code', scope: 'openid profile email',
      state: 's', code_challenge: challenge, code_challenge_method: 'S256',
    });
    await page.goto(`${issuer}/authorize?${query}`);
    await page.getByRole('button', { name: 'Refuse' }).waitFor();
    await inspect(page, 'consent');
    await page.goto(instance.url('echo'));
    await page.goto(instance.url('echo', '/.dormouse/nothing'));
    await inspect(page, 'not-found');
    await page.goto(instance.url('echo', '/.dormouse/sign-out'));
    await inspect(page, 'sign-out');
    await page.getByRole('button', { name: 'Sign out' }).click();
    await page.getByRole('heading', { name: 'You are signed out' }).waitFor();
    await inspect(page, 'signed-out-of-workloads');
  });
});

test('a token made on the account page, without scripts, calls an app', { ...needsBrowser, timeout: 120_000 }, async () => {
  const call = async (token) => {
    const args = ['--silent', '--cacert', instance.ready.ca, '--config', '-', instance.url('echo')];
    const [{ hostname, port }, input] = [new URL(instance.url('echo')), `header = "Authorization: Bearer ${token}"`];
    const result = await run('curl', ['--resolve', `${hostname}:${port}:127.0.0.1`, '--write-out', '\n%{http_code}', ...args], { input });
    assert.equal(result.code, 0, result.stderr);
    return result.stdout.trim().split('\n').at(-1);
  };
  await withPage(browser, 'pages-token', { javaScriptEnabled: false }, async (page) => {
    await page.goto(`${issuer}/account`);
    await fillSignIn(page, alice);
    await page.locator('summary', { hasText: 'New token' }).click();
    await page.getByLabel('Name of the new token').fill('from a browser');
    await page.getByLabel('Expires in').selectOption('1 day');
    await page.getByRole('button', { name: 'Make the token' }).click();
    await page.getByRole('heading', { name: 'Your new token' }).waitFor();
    const token = await page.getByLabel('Token').inputValue();
    assert.ok(!page.url().includes(token));
    assert.equal(await call(token), '200');
    await page.getByRole('link', { name: 'Your account' }).click();
    assert.ok(!(await page.content()).includes(token), 'it is shown once');
    const line = page.getByRole('listitem').filter({ hasText: 'from a browser' });
    await line.locator('summary').click();
    await line.getByRole('button', { name: /Withdraw for good/ }).click();
    await line.waitFor({ state: 'detached' });
    await until('the gateway to refuse it', async () => (await call(token)) === '401');
  });
});

test('the page that shows a new token', { ...needsBrowser, timeout: 120_000 }, async () => {
  await withPage(browser, 'pages-new-token', {}, async (page) => {
    await page.goto(`${issuer}/account`);
    await fillSignIn(page, alice);
    await page.locator('summary', { hasText: 'New token' }).click();
    await page.getByLabel('Name of the new token').fill('looked at');
    await page.getByLabel('Only this workload (optional)').fill(`${instance.project}/echo`);
    await page.getByRole('button', { name: 'Make the token' }).click();
    await page.getByRole('heading', { name: 'Your new token' }).waitFor();
    await inspect(page, 'new-token');
    const stops = await tabStops(page);
    assert.deepEqual(stops.map(({ text }) => text), ['Token', 'Your account']);
    assert.ok(stops.every(({ outlined }) => outlined), 'what has the focus is seen to have it');
  });
});

test('the page that says which ways there are to sign in', { ...needsBrowser, timeout: 120_000 }, async () => {
  const server = await startAuthserver('choice', [
    { id: 'company', name: 'Example Corporation of Greater Northampton & Sons', issuer: 'https://login.example.com' },
    { id: 'lab', name: 'Lab', issuer: 'https://id.example.org' },
  ]);
  try {
    await withPage(browser, 'pages-choice', {}, async (page) => {
      await page.goto(`${server.base}/account`);
      await page.getByRole('link', { name: 'Sign in with Lab' }).waitFor();
      await inspect(page, 'choice');
      const stops = await tabStops(page);
      const ways = ['Sign in with Example Corporation of Greater Northampton & Sons', 'Sign in with Lab'];
      assert.deepEqual(stops.map(({ text }) => text).slice(0, 2), ways);
      assert.ok(stops.every(({ outlined }) => outlined), 'what has the focus is seen to have it');
    });
  } finally {
    await server.stop();
    rmSync(server.folder, { recursive: true, force: true });
  }
});

test('the page that approves a device', { ...needsBrowser, timeout: 120_000 }, async () => {
  const form = new URLSearchParams({ client_id: 'television', scope: 'openid profile workload:use workload:manage' });
  const headers = { 'content-type': 'application/x-www-form-urlencoded', 'content-length': form.toString().length };
  const options = { method: 'POST', headers, body: form.toString() };
  const begun = (await request(instance, `${issuer}/device/code`, options)).json();
  await withPage(browser, 'pages-device', {}, async (page) => {
    await page.goto(begun.verification_uri_complete);
    await fillSignIn(page, alice);
    await page.getByRole('button', { name: 'Continue' }).click();
    await page.getByRole('heading', { name: 'Approve this device?' }).waitFor();
    await inspect(page, 'device-approval');
    const stops = await tabStops(page);
    assert.deepEqual(stops.map(({ text }) => text), ['Approve', 'Refuse']);
    assert.ok(stops.every(({ outlined }) => outlined), 'what has the focus is seen to have it');
    await page.getByRole('button', { name: 'Refuse' }).click();
    await page.getByRole('button', { name: 'Refuse' }).waitFor({ state: 'detached' });
    await inspect(page, 'device-refused');
  });
});

test('the page that is shown while a workload wakes', { ...needsBrowser, timeout: 180_000 }, async () => {
  const { namespace } = (await resource(instance, 'App', 'echo')).metadata;
  const never = {
    apiVersion: 'dormouse.dev/v1alpha1',
    kind: 'App',
    metadata: { name: 'never-ready', namespace },
    // It runs, and never answers.
    spec: { owner: 'alice', image: 'sleep', command: ['sleep', '600'], port: 8080 },
  };
  await create(instance, never);
  try {
    const url = await until('its URL', async () => (await resource(instance, 'App', 'never-ready')).status?.url, { within: 60_000 });
    await withPage(browser, 'pages-waking', {}, async (page) => {
      await page.goto(url);
      await fillSignIn(page, alice);
      await page.getByRole('heading', { name: 'Waking never-ready' }).waitFor({ timeout: 60_000 });
      await page.getByRole('status').filter({ hasText: /\w/ }).waitFor();
      const current = page.locator('[aria-current="step"]');
      assert.equal(await current.count(), 1, 'which step it is at is not told by colour alone');
      await inspect(page, 'waking');
    });
  } finally {
    await remove(instance, never);
  }
});
