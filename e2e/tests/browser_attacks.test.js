// What pages of others can do to somebody who is signed in, tried in a browser: with cookies (8), with
// WebSockets (9) and with return addresses (10). On a domain of its own: browsers let no page set
// cookies for all of `localhost`.

import assert from 'node:assert/strict';
import { after, test } from 'node:test';

import { fillSignIn, launchBrowser, needsBrowser as needsChromium, withPage } from '../support/browser.js';
import { create, resource } from '../support/cluster.js';
import { until } from '../support/deadline.js';
import { foreignKubeconfig, ownInstance } from '../support/instance.js';
import { signIn } from '../support/web_session.js';

const DOMAIN = 'dormouse.test';
const EVIL = 'https://evil.test';

// What lives on in a foreign cluster has its domain already.
const needsBrowser = foreignKubeconfig ? { skip: 'it needs a domain of its own' } : needsChromium;

let instance;
let browser;
let alice;
let echo;
let sibling;

if (!needsBrowser.skip) {
  instance = await ownInstance('browser-attacks', ['--base-domain', DOMAIN]);
  alice = instance.user('alice');
  echo = instance.url('echo');
  // A neighbour whose scripts are the attacker's. It is alice's as well, so that she has a session there.
  const { metadata, spec } = await resource(instance, 'App', 'echo');
  const { namespace } = metadata;
  await create(instance, { apiVersion: 'dormouse.dev/v1alpha1', kind: 'App', metadata: { name: 'sibling', namespace }, spec });
  const isThere = async () => {
    const found = await resource(instance, 'App', 'sibling');
    return found.status?.url && found.status.phase === 'Running' && found;
  };
  sibling = (await until('the neighbour', isThere, { within: 60_000 })).status.url;
  browser = await launchBrowser(instance, [`--host-resolver-rules=MAP *.${DOMAIN} 127.0.0.1`]);
  after(() => browser.close());
}

const hostOf = (url) => new URL(url).hostname;

/** Opens a page, and signs in if that is asked for. */
async function open(page, url, user = alice) {
  await page.goto(url);
  if (new URL(page.url()).origin === new URL(instance.ready.issuer).origin) {
    await fillSignIn(page, user);
    await page.waitForURL((now) => now.hostname === hostOf(url));
  }
}

/** Who the gate takes this browser for, on that host. */
async function whoIs(page, url) {
  await page.goto(new URL('/.dormouse/whoami', url).href);
  return JSON.parse(await page.evaluate(() => document.body.innerText)).user;
}

/** The headers that a workload got. */
async function headersAt(page, url) {
  await page.goto(url);
  return JSON.parse(await page.evaluate(() => document.body.innerText)).headers;
}

/** Every spelling under which a page could try to have a cookie of ours on all hosts. */
function tossed(value) {
  const ours = ['', '-refresh', '-login-AAAAAAAAAAAA', '-sign-out', '-pod', '-sso', '-form', '-device'];
  const wide = `Domain=${DOMAIN}; Secure`;
  return [
    ...ours.flatMap((end) => [
      `__Host-dormouse${end}=${value}; Path=/; ${wide}`,
      `__Host-dormouse${end}=${value}; Path=/.dormouse; ${wide}`,
      `__host-dormouse${end}=${value}; Path=/; ${wide}`,
      `__HOST-DORMOUSE${end}=${value}; Path=/; ${wide}`,
      `=__Host-dormouse${end}=${value}; Path=/; ${wide}`,
    ]),
    ` \t__Host-dormouse=${value}; Path=/; ${wide}`,
    `__Host-dormouse\t=${value}; Path=/; ${wide}`,
    `__Host-dormouse=${value}; Path=/; ${wide}; Max-Age=99999999`,
    `__Host-dormouse; Path=/; ${wide}`,
    // What does work, to show that the others would count if they did.
    `tossed=1; Path=/; ${wide}`,
  ];
}

const setAll = (page, cookies) => page.evaluate((all) => all.forEach((one) => (document.cookie = one)), cookies);

test('attack_8: a neighbour\'s script neither reads nor replaces a session', { ...needsBrowser, timeout: 180_000 }, async () => {
  const theirs = (await signIn(instance, 'bob', echo)).session.cookies(echo);
  const bob = theirs.find(({ name }) => name === '__Host-dormouse').value;
  await withPage(browser, 'cookie-tossing', {}, async (page, context) => {
    await open(page, echo);
    const session = async () => {
      const all = await context.cookies(echo);
      return all.filter(({ name, value }) => /^__host-dormouse$/i.test(name) || value.startsWith('__Host-')).map(({ value }) => value);
    };
    const before = await session();
    assert.equal(before.length, 1);
    await open(page, sibling);
    assert.doesNotMatch(await page.evaluate(() => document.cookie), /dormouse/, 'no script reads a session');
    await setAll(page, tossed(bob));
    // Neither on its own host, where a cookie of the name may be set.
    await setAll(page, [`__Host-dormouse=${bob}; Path=/; Secure`]);
    assert.equal(await whoIs(page, sibling), 'alice');
    assert.equal(await whoIs(page, echo), 'alice');
    assert.deepEqual(await session(), before, 'one cookie, and the same');
    const cookie = (await headersAt(page, echo)).find(([name]) => name === 'cookie')?.[1] ?? '';
    assert.equal(cookie, 'tossed=1', 'the workload gets what was tossed, and nothing of ours');
  });
});

test('attack_8: nobody is signed in as somebody else', { ...needsBrowser, timeout: 180_000 }, async () => {
  const { session } = await signIn(instance, 'bob', echo);
  const cookies = [...session.cookies(echo), ...session.cookies(instance.ready.issuer)];
  await withPage(browser, 'session-fixation', {}, async (page) => {
    await open(page, sibling);
    // Before there is any session at the other host, and with all that bob has.
    for (const { name, value } of cookies) {
      await setAll(page, [`${name}=${value}; Path=/; Domain=${DOMAIN}; Secure`, `=${name}=${value}; Path=/; Domain=${DOMAIN}; Secure`]);
    }
    await setAll(page, tossed(cookies.find(({ name }) => name === '__Host-dormouse').value));
    await open(page, echo);
    assert.equal(await whoIs(page, echo), 'alice');
    await open(page, instance.ready.portal);
    assert.equal(await whoIs(page, instance.ready.portal), 'alice');
  });
});

/** What comes of a WebSocket that a page opens: what it heard, or that it was closed. */
const socket = (page, url) =>
  page.evaluate(
    (to) =>
      new Promise((resolve) => {
        const opened = new WebSocket(to);
        opened.onopen = () => opened.send('hello');
        opened.onmessage = ({ data }) => resolve(`heard ${data}`);
        opened.onclose = ({ code }) => resolve(`closed ${code}`);
      }),
    url,
  );

/** The same from within a frame that has no origin. */
const sandboxed = (page, url) =>
  page.evaluate(
    (to) =>
      new Promise((resolve) => {
        globalThis.addEventListener('message', ({ data }) => resolve(data), { once: true });
        const frame = document.createElement('iframe');
        frame.sandbox = 'allow-scripts';
        frame.srcdoc = `<script>
          const socket = new WebSocket(${JSON.stringify(to)});
          socket.onopen = () => socket.send('hello');
          socket.onmessage = ({ data }) => parent.postMessage('heard ' + data, '*');
          socket.onclose = ({ code }) => parent.postMessage('closed ' + code, '*');
        </script>`;
        document.body.append(frame);
      }),
    url,
  );

test('attack_9: no page but its own opens a WebSocket with a session', { ...needsBrowser, timeout: 180_000 }, async () => {
  const url = new URL('/ws', echo).href.replace(/^https:/, 'wss:');
  await withPage(browser, 'websocket-hijack', {}, async (page) => {
    await page.route(`${EVIL}/**`, (route) => route.fulfill({ contentType: 'text/html', body: '<title>evil</title>' }));
    await open(page, echo);
    assert.equal(await socket(page, url), 'heard hello', 'its own page may');
    assert.equal(await sandboxed(page, url), 'closed 1006', 'a frame without an origin, though on its own page');
    // The neighbour is of the same site, so that the browser sends the session along.
    await open(page, sibling);
    assert.equal(await socket(page, url), 'closed 1006', 'a neighbour');
    assert.equal(await sandboxed(page, url), 'closed 1006', 'a frame without an origin');
    const read = (to) => fetch(to, { credentials: 'include' }).then((answer) => answer.text()).catch((error) => error.name);
    assert.equal(await page.evaluate(read, echo), 'TypeError', 'nor does a neighbour read an answer');
    await open(page, instance.ready.portal);
    await page.goto(`${EVIL}/`);
    assert.equal(await page.title(), 'evil');
    assert.equal(await socket(page, url), 'closed 1006', 'a foreign page');
    // It was not for want of a session.
    await open(page, echo);
    assert.equal(await socket(page, url), 'heard hello');
  });
});

test('attack_9: no page but its own changes anything with a session', { ...needsBrowser, timeout: 180_000 }, async () => {
  const send = (page, to) =>
    page.evaluate(
      (url) => fetch(url, { method: 'POST', body: 'x', credentials: 'include', mode: 'no-cors' }).then(({ status, type }) => `${type} ${status}`),
      to,
    );
  const submit = (page, to) =>
    page.evaluate((url) => {
      const form = document.createElement('form');
      Object.assign(form, { method: 'post', action: url });
      document.body.append(form);
      form.submit();
    }, to);
  const transfer = new URL('/transfer', echo).href;
  await withPage(browser, 'neighbour-posts', {}, async (page) => {
    const answers = [];
    page.on('response', (response) => {
      if (response.url().startsWith(echo) && response.request().method() === 'POST') answers.push(response.status());
    });
    await open(page, echo);
    assert.equal(await send(page, transfer), 'basic 200', 'its own page may');
    await open(page, sibling);
    await send(page, transfer);
    await submit(page, transfer);
    await page.getByText('Cross-origin request refused').waitFor();
    assert.deepEqual(answers, [200, 403, 403]);
    await open(page, sibling);
    const woken = await page.evaluate(
      (url) => fetch(url, { credentials: 'include', mode: 'no-cors' }).then(({ type }) => type),
      new URL('/.dormouse/sign-out', echo).href,
    );
    assert.equal(woken, 'opaque');
    // A link is for a person to follow.
    await page.evaluate((url) => location.assign(url), transfer);
    await page.waitForURL(transfer);
    assert.equal(await whoIs(page, echo), 'alice');
  });
});

test('attack_10: whoever signs in comes back to where they were, and nowhere else', { ...needsBrowser, timeout: 180_000 }, async () => {
  await withPage(browser, 'open-redirect', {}, async (page, context) => {
    const seen = new Set();
    page.on('request', (request) => seen.add(hostOf(request.url())));
    const { host } = new URL(echo);
    const issuer = instance.ready.issuer.replace(/\/$/, '');
    await open(page, echo);
    for (const target of [
      '//evil.test/x',
      '///evil.test/x',
      '/\\evil.test/x',
      '/\\/evil.test',
      '/\t/evil.test',
      '/%09/evil.test',
      '/%5c%5cevil.test',
      '/%0d%0aLocation:%20https://evil.test/',
      '/@evil.test',
      '/.evil.test',
      '/?to=https://evil.test',
      '//user@evil.test/',
      '//еvil.test/',
      '//evil。test/',
    ]) {
      await context.clearCookies({ domain: hostOf(echo) });
      // Typed as it is: what the browser makes of it is part of the question.
      await page.goto(`https://${host}${target}`);
      assert.equal(hostOf(page.url()), hostOf(echo), target);
      assert.equal((await context.cookies(echo)).some(({ name }) => name === '__Host-dormouse'), true, `signed in again: ${target}`);
    }
    for (const to of [`${EVIL}/`, '//evil.test', 'https:evil.test', `https://${host}@evil.test/`, `https://evil.test/${host}`]) {
      const query = new URLSearchParams({ client_id: 'dormouse-gate', post_logout_redirect_uri: to, state: 'x' });
      await page.goto(`${issuer}/sign-out?${query}`);
      assert.equal(hostOf(page.url()), hostOf(issuer), to);
    }
    const foreign = [...seen].filter((name) => name !== DOMAIN && !name.endsWith(`.${DOMAIN}`));
    assert.deepEqual(foreign, [], 'no other host was ever asked');
  });
});
