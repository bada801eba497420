// Passkeys in Chromium, which keeps them in an authenticator of its own (Web Authentication, section 11).

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import { addAuthenticator, fillSignIn, launchBrowser, needsBrowser, picture, withPage } from '../support/browser.js';
import { run } from '../support/command.js';
import { binary, sharedInstance } from '../support/instance.js';

const instance = await sharedInstance();
const issuer = instance.ready.issuer;
const account = new URL('/account', issuer).href;
const carol = { name: 'carol', password: 'a passphrase of carol' };
let browser;

before(async () => {
  await auth('user', 'add', '--name', carol.name, { input: carol.password });
  if (!needsBrowser.skip) browser = await launchBrowser(instance);
});
after(() => browser?.close());

/** Runs `dormouse auth ...` on the instance; answers what it printed. */
async function auth(kind, order, ...rest) {
  const options = typeof rest.at(-1) === 'object' ? rest.pop() : {};
  const result = await run(binary, ['auth', kind, order, '--data-dir', instance.dataDir, ...rest], options);
  assert.equal(result.code, 0, result.stderr);
  return result.stdout;
}

/** Opens a page of somebody who is not signed in, and signs in by password. */
async function signIn(page, user, url) {
  await page.goto(url);
  await fillSignIn(page, user);
  await page.waitForURL((now) => now.hostname === new URL(url).hostname && now.pathname !== '/sign-in');
}

async function addPasskey(page, name) {
  await page.goto(account);
  await page.getByLabel('Name of the new passkey').fill(name);
  await page.getByRole('button', { name: 'Add a passkey' }).click();
  await page.getByRole('listitem').filter({ hasText: name }).waitFor();
}

/** Leaves everything, by the one button on the one page that asks. */
async function signOut(page, from) {
  await page.goto(new URL('/.dormouse/sign-out', from).href);
  assert.equal(new URL(page.url()).origin, issuer, 'the question is the issuer\'s');
  await page.getByRole('button', { name: 'Sign out' }).click();
  await page.getByRole('heading', { name: 'You are signed out' }).waitFor();
  assert.equal(new URL(page.url()).hostname, new URL(from).hostname, 'back where it was asked for');
}

/** Opens a page of somebody who is not signed in, and signs in by the button for passkeys. */
async function signInByPasskey(page, url) {
  await page.goto(url);
  assert.equal(new URL(page.url()).origin, issuer, 'signed out');
  await page.getByRole('button', { name: 'Sign in with a passkey' }).click();
}

const refusal = (page) => page.getByRole('alert').filter({ hasText: 'does not work here any more' });

test('alice adds a passkey and opens her workload with it alone', { ...needsBrowser, timeout: 120_000 }, async () => {
  const url = instance.url('echo');
  await withPage(browser, 'passkey', {}, async (page, context) => {
    const authenticator = await addAuthenticator(page);
    await signIn(page, instance.user('alice'), url);
    await addPasskey(page, 'laptop');
    await picture(page, 'account');
    assert.equal((await authenticator.passkeys()).length, 1);
    assert.match(await auth('user', 'show', '--name', 'alice'), /laptop {2}added .*not used yet/);

    await signOut(page, url);
    const left = (await context.cookies()).filter(({ name }) => /^__Host-dormouse(-refresh|-sso|-sign-out)?$/.test(name));
    assert.deepEqual(left.map(({ name }) => name), [], 'cookies that are left');
    await signInByPasskey(page, url);
    await page.waitForURL((now) => now.hostname === new URL(url).hostname);
    const whoami = await page.goto(new URL('/.dormouse/whoami', url).href);
    assert.equal((await whoami.json()).user, 'alice');
    assert.match(await auth('user', 'show', '--name', 'alice'), /laptop {2}added .*last used/);

    // Out of the name field's suggestions, where this authenticator picks by itself.
    await page.goto(account);
    await page.evaluate(() => localStorage.setItem('suggestions', 'yes'));
    await signOut(page, url);
    await page.goto(url);
    await page.waitForURL((now) => now.hostname === new URL(url).hostname);

    // Removed by her, it is refused, though the authenticator still has it.
    await page.goto(account);
    await page.evaluate(() => localStorage.clear());
    const line = page.getByRole('listitem').filter({ hasText: 'laptop' });
    await line.locator('summary').click();
    await line.getByRole('button', { name: /Remove for good/ }).click();
    await line.waitFor({ state: 'detached' });
    await signOut(page, url);
    await signInByPasskey(page, url);
    await refusal(page).waitFor();
    assert.equal((await authenticator.passkeys()).length, 1);
  });
});

test('a passkey of somebody who is disabled is refused', { ...needsBrowser, timeout: 60_000 }, async () => {
  await withPage(browser, 'passkey-disabled', {}, async (page, context) => {
    await addAuthenticator(page);
    await signIn(page, carol, account);
    await addPasskey(page, 'phone');
    await auth('user', 'disable', '--name', carol.name);
    await context.clearCookies();
    const trySignIn = () => signInByPasskey(page, account);
    await trySignIn();
    await refusal(page).waitFor();
    await auth('user', 'enable', '--name', carol.name);
    await trySignIn();
    await page.getByRole('heading', { name: 'Your account' }).waitFor();
    // An operator removes it, for a telephone that was lost.
    await auth('passkey', 'remove', '--user', carol.name, '--all');
    await context.clearCookies();
    await trySignIn();
    await refusal(page).waitFor();
  });
});

test('an authenticator that does not verify its user is refused', { ...needsBrowser, timeout: 60_000 }, async () => {
  await withPage(browser, 'passkey-unverified', {}, async (page) => {
    await addAuthenticator(page, { isUserVerified: false });
    await signIn(page, carol, account);
    await page.getByLabel('Name of the new passkey').fill('nobody looked');
    await page.getByRole('button', { name: 'Add a passkey' }).click();
    await page.getByRole('alert').filter({ hasText: 'No passkey was used' }).waitFor();
    assert.equal(await page.getByRole('listitem').filter({ hasText: 'nobody looked' }).count(), 0);
  });
});

test('without scripts there is the password, and no button that does nothing', needsBrowser, async () => {
  await withPage(browser, 'no-scripts', { javaScriptEnabled: false }, async (page) => {
    await page.goto(account);
    assert.equal(await page.getByRole('button', { name: 'Sign in with a passkey' }).count(), 0);
    await fillSignIn(page, carol);
    await page.getByRole('heading', { name: 'Your account' }).waitFor();
    assert.equal(await page.getByRole('button', { name: 'Add a passkey' }).count(), 0);
    assert.match(await page.content(), /needs JavaScript/);
  });
});
