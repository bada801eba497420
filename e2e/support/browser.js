// Chromium through playwright-core, with the development authority in its trust store: certificates
// are verified as in a person's browser.

import assert from 'node:assert/strict';
import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { chromium } from 'playwright-core';

import { needs, run, which } from './command.js';
import { repository, temporaryFolder } from './instance.js';

const candidates = [process.env.CHROMIUM, 'chromium', 'chromium-browser', 'google-chrome'];
const executablePath = candidates.filter(Boolean).map(which).find(Boolean);

/** Options for `test()`: skips with the reason when there is no browser. */
export const needsBrowser = executablePath
  ? needs('certutil')
  : { skip: 'Chromium not found on this machine; set CHROMIUM to a browser of its family' };

/** Nothing that talks to anybody but the pages opened. */
const quiet = ['--disable-background-networking', '--disable-component-update', '--disable-sync'];

/** A browser that trusts the instance's authority; `args` besides those that all have. */
export async function launchBrowser(instance, args = []) {
  const home = temporaryFolder('browser');
  const store = path.join(home, '.pki', 'nssdb');
  mkdirSync(store, { recursive: true });
  const database = `sql:${store}`;
  await certutil('-N', '-d', database, '--empty-password');
  await certutil('-A', '-d', database, '-t', 'C,,', '-n', 'dormouse development', '-i', instance.ready.ca);
  return chromium.launch({
    executablePath,
    args: [...quiet, '--disable-gpu', '--disable-quic', '--no-first-run', ...args],
    env: { ...process.env, HOME: home },
  });
}

async function certutil(...args) {
  const { code, stderr } = await run('certutil', args);
  if (code !== 0) throw new Error(`certutil ${args.join(' ')}: ${stderr}`);
}

/** Opens a page as somebody who is not signed in, and signs in. */
export async function openSignedIn(page, instance, user, url) {
  await page.goto(url);
  assert.equal(new URL(page.url()).origin, new URL(instance.ready.issuer).origin, 'the sign-in page');
  await fillSignIn(page, user);
  await page.waitForURL((now) => now.hostname === new URL(url).hostname);
}

/** Opens a new notebook from JupyterLab's launcher, and waits for its kernel. */
export async function newNotebook(page) {
  await page.locator('.jp-LauncherCard[data-category="Notebook"]').first().click({ timeout: 90_000 });
  // JupyterLab drops what is run before it knows its kernel.
  await page.getByText('Python 3 (ipykernel) | Idle').waitFor({ timeout: 90_000 });
}

/** Runs code in the notebook's selected cell; the next one is selected then. */
export async function runCell(page, number, code) {
  await page.locator('.jp-Notebook .jp-CodeCell .cm-content').nth(number).click();
  await page.keyboard.type(code);
  await page.keyboard.press('Shift+Enter');
}

/** Fills in the sign-in page that is shown, and sends it. */
export async function fillSignIn(page, { name, password }) {
  await page.getByLabel(/user ?name|name|e-?mail/i).first().fill(name);
  await page.locator('input[type=password]').fill(password);
  await page.locator('form:has(input[type=password]) [type=submit], form:has(input[type=password]) button').first().click();
}

/**
 * Gives the page an authenticator that is part of its device, as a fingerprint reader is. Answers what
 * tells which passkeys it keeps. It answers at once whatever it is asked, so a page that offers
 * passkeys among a field's suggestions would never be seen: it does so once `suggestions` is in its
 * local storage.
 */
export async function addAuthenticator(page, options = {}) {
  await page.addInitScript(() => {
    const can = async () => localStorage.getItem('suggestions') !== null;
    if (globalThis.PublicKeyCredential) PublicKeyCredential.isConditionalMediationAvailable = can;
  });
  const devtools = await page.context().newCDPSession(page);
  await devtools.send('WebAuthn.enable');
  const { authenticatorId } = await devtools.send('WebAuthn.addVirtualAuthenticator', {
    options: {
      protocol: 'ctap2',
      transport: 'internal',
      hasResidentKey: true,
      hasUserVerification: true,
      isUserVerified: true,
      automaticPresenceSimulation: true,
      ...options,
    },
  });
  const passkeys = async () => (await devtools.send('WebAuthn.getCredentials', { authenticatorId })).credentials;
  return { passkeys };
}

const artifacts = path.join(repository, 'e2e', 'artifacts');

/** A picture for the documentation, when DORMOUSE_E2E_SCREENSHOTS=1. */
export async function picture(page, name) {
  if (process.env.DORMOUSE_E2E_SCREENSHOTS !== '1') return;
  const folder = path.join(repository, 'docs', 'images');
  mkdirSync(folder, { recursive: true });
  await page.screenshot({ path: path.join(folder, `${name}.png`) });
}

/** A picture to look at, among the artifacts, on the same condition. */
export async function look(page, name) {
  if (process.env.DORMOUSE_E2E_SCREENSHOTS !== '1') return;
  const folder = path.join(artifacts, 'pages');
  mkdirSync(folder, { recursive: true });
  await page.screenshot({ path: path.join(folder, `${name}.png`), fullPage: true });
}

/** Runs `story(page)`; when it fails, what the page showed goes to the artifacts. */
export async function withPage(browser, name, options, story) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
  const page = await context.newPage();
  const said = [];
  page.on('console', (message) => said.push(`${message.type()}: ${message.text()}`));
  page.on('requestfailed', (failed) => said.push(`failed: ${failed.url()} ${failed.failure()?.errorText}`));
  try {
    return await story(page, context);
  } catch (error) {
    mkdirSync(artifacts, { recursive: true });
    const file = path.join(artifacts, `${name}.png`);
    await page.screenshot({ path: file }).catch(() => {});
    writeFileSync(path.join(artifacts, `${name}.console.log`), `${page.url()}\n${said.join('\n')}\n`);
    throw new Error(`${error.message}\n(at ${page.url()}; what it showed: ${path.relative(repository, file)})`, {
      cause: error,
    });
  } finally {
    await context.close();
  }
}
