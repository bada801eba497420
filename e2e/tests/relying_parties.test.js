// Programs of others, with the libraries that they are written with, sign a person in here.

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { after, test } from 'node:test';

import { fillSignIn, launchBrowser, needsBrowser, withPage } from '../support/browser.js';
import { which } from '../support/command.js';
import { Instance, freePort, repository, temporaryFolder } from '../support/instance.js';
import { startProgram } from '../support/program.js';

const here = path.join(repository, 'e2e', 'relying_parties');
const venv = process.env.DORMOUSE_E2E_RELYING_PARTIES ?? path.join(repository, '.dev', 'relying-parties');
const python = path.join(venv, 'bin', 'python');
const needsPython = which(python)
  ? needsBrowser
  : { skip: `${path.relative(repository, venv)} is not there: Authlib and JupyterHub need Python with its venv module` };

const carol = { name: 'carol', email: 'carol@example.com', password: randomBytes(12).toString('hex') };
const groups = ['ml', 'research'];

// Different ports for all: nobody listens yet on those that were found before.
const ports = new Set();
async function port() {
  for (;;) {
    const one = await freePort();
    if (!ports.has(one)) {
      ports.add(one);
      return one;
    }
  }
}

const folder = temporaryFolder('relying-parties');
const secret = () => randomBytes(24).toString('hex');
const parties = {
  'openid-client': { port: await port(), callback: '/callback' },
  authlib: { port: await port(), callback: '/callback', secret: secret() },
  jupyterhub: { port: await port(), callback: '/hub/oauth_callback', secret: secret() },
};
for (const [id, party] of Object.entries(parties)) {
  party.url = `http://127.0.0.1:${party.port}`;
  if (party.secret) writeFileSync(path.join(folder, id), party.secret, { mode: 0o600 });
}

const clients = path.join(folder, 'clients.toml');
writeFileSync(
  clients,
  Object.entries(parties)
    .map(([id, party]) => {
      const known = party.secret ? `secret_file = ${JSON.stringify(path.join(folder, id))}` : 'public = true';
      return `[[clients]]\nid = "${id}"\n${known}\nredirect_uris = ["${party.url}${party.callback}"]\n`;
    })
    .join('\n'),
);

// The programs and the browser end before what they talk to, and all before the instance's folder goes.
const instance = await Instance.create('relying-parties', ['--clients', clients]);
const running = [];
after(async () => {
  const ends = await Promise.allSettled(running.map((stop) => stop()));
  await instance.stop();
  instance.remove();
  rmSync(folder, { recursive: true, force: true });
  for (const { reason } of ends) assert.ifError(reason ?? null);
});
if (!needsBrowser.skip) await instance.start();

/** What every program is run with: names, trust and who it is. Verification stays on. */
function environment(id) {
  return {
    ISSUER: instance.ready.issuer,
    CLIENT_ID: id,
    CLIENT_SECRET: parties[id].secret ?? '',
    PORT: String(parties[id].port),
    NODE_EXTRA_CA_CERTS: instance.ready.ca,
    SSL_CERT_FILE: instance.ready.ca,
    REQUESTS_CA_BUNDLE: instance.ready.ca,
    PYTHONPATH: path.join(here, 'localhost'),
    PYTHONUNBUFFERED: '1',
  };
}

let browser;
if (!needsBrowser.skip) {
  browser = await launchBrowser(instance);
  running.push(() => browser.close());
  const flags = ['--email', carol.email, ...groups.flatMap((group) => ['--group', group])];
  const args = ['auth', 'user', 'add', '--data-dir', instance.dataDir, '--name', carol.name, ...flags];
  const { code, stderr } = await instance.dormouse(args, { input: carol.password });
  assert.equal(code, 0, stderr);
}

/** Starts the program, and ends it with the file. */
async function start(id, command, args, { env = {}, url = parties[id].url } = {}) {
  const options = { env: { ...environment(id), ...env }, cwd: folder, url };
  const program = await startProgram(`relying-party-${id}`, command, args, options);
  running.push(() => program.stop());
}

/** Opens the program's way to sign in, signs in as carol, and waits until the browser is back. */
async function signIn(page, id, pathname) {
  await page.goto(`${parties[id].url}${pathname}`);
  assert.equal(new URL(page.url()).origin, new URL(instance.ready.issuer).origin, 'the sign-in page');
  await fillSignIn(page, carol);
  await page.waitForURL((now) => now.origin === parties[id].url);
}

/** What the program shows. */
async function shown(page) {
  return JSON.parse(await page.locator('body').innerText());
}

function isCarol(userinfo) {
  assert.equal(userinfo.preferred_username, carol.name);
  assert.equal(userinfo.email, carol.email);
  assert.deepEqual([...userinfo.groups].sort(), groups);
}

test('a program with openid-client signs carol in, refreshes and revokes', needsBrowser, async () => {
  const preload = ['--require', path.join(here, 'localhost', 'preload.cjs')];
  await start('openid-client', process.execPath, [...preload, path.join(here, 'openid_client.js')]);
  await withPage(browser, 'openid-client', {}, async (page) => {
    await signIn(page, 'openid-client', '/sign-in');
    const { claims, userinfo, again, refused } = await shown(page);
    isCarol(userinfo);
    assert.equal(claims.iss, instance.ready.issuer);
    assert.deepEqual(again, userinfo);
    assert.equal(refused, 'invalid_grant');
  });
});

test('a program with Authlib signs carol in', needsPython, async () => {
  await start('authlib', python, [path.join(here, 'authlib_app.py')]);
  await withPage(browser, 'authlib', {}, async (page) => {
    await signIn(page, 'authlib', '/sign-in');
    const { claims, userinfo } = await shown(page);
    isCarol(userinfo);
    assert.equal(claims.iss, instance.ready.issuer);
    assert.equal(claims.sub, userinfo.sub);
  });
});

test('JupyterHub signs carol in with GenericOAuthenticator', needsPython, async () => {
  const apiToken = secret();
  const proxy = path.join(repository, 'e2e', 'node_modules', 'configurable-http-proxy', 'bin', 'configurable-http-proxy');
  const env = {
    HUB_PORT: String(await port()),
    PROXY_API_PORT: String(await port()),
    PROXY_COMMAND: [process.execPath, proxy].join('\n'),
    API_TOKEN: apiToken,
    JUPYTERHUB_CRYPT_KEY: randomBytes(32).toString('hex'),
  };
  const args = ['-m', 'jupyterhub', '--config', path.join(here, 'jupyterhub_config.py')];
  const { url } = parties.jupyterhub;
  await start('jupyterhub', python, args, { env, url: `${url}/hub/health` });
  await withPage(browser, 'jupyterhub', {}, async (page) => {
    await signIn(page, 'jupyterhub', '/hub/oauth_login');
    await page.waitForURL((now) => now.pathname === '/hub/home');
    assert.ok((await page.locator('body').innerText()).includes(carol.name), 'the hub says who is signed in');
  });
  const response = await fetch(`${url}/hub/api/users/${carol.name}`, { headers: { authorization: `token ${apiToken}` } });
  assert.equal(response.status, 200);
  const user = await response.json();
  isCarol(user.auth_state.oauth_user);
  assert.deepEqual([...user.groups].sort(), groups);
});
