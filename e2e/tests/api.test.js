// An API client: tokens, the echo app, and what reaches it.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { needs, run } from '../support/command.js';
import { navigation, open, request } from '../support/client.js';
import { until, withDeadline } from '../support/deadline.js';
import { sharedInstance } from '../support/instance.js';
import { signIn } from '../support/web_session.js';

const instance = await sharedInstance();
const echo = instance.url('echo');
const alice = instance.token('alice');
// Asked for now, so that it has expired by the time it is looked at.
const expiring = instance.issueToken('alice', '--expires-in', '1s');

/** Asserts a 401 as DESIGN says: a challenge, and a problem document (RFC 9457). */
function assertUnauthorized(response, what) {
  assert.equal(response.status, 401, `${what}: ${response.status} ${response.text}`);
  assert.match(response.headers['www-authenticate'] ?? '', /^Bearer/i, `${what}: the challenge`);
  assertProblem(response, 401);
}

function assertProblem(response, status) {
  assert.match(response.headers['content-type'] ?? '', /^application\/problem\+json/);
  const problem = response.json();
  assert.equal(problem.status, status);
  assert.ok(problem.title, 'a problem document has a title');
}

function decode(token) {
  return token.split('.').slice(0, 2).map((part) => JSON.parse(Buffer.from(part, 'base64url')));
}

const encode = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');

test('a personal access token says who it is', async () => {
  const response = await request(instance, new URL('/.dormouse/whoami', echo), { token: alice });
  assert.equal(response.status, 200, response.text);
  assert.match(response.text, /alice/);
  assert.doesNotMatch(response.text, new RegExp(alice), 'the token is not repeated');
});

test('a token that is limited to one workload opens no other', async () => {
  const { project } = instance.workload('echo');
  const token = await instance.issueToken('alice', '--workload', `${project}/echo`);
  assert.equal((await request(instance, echo, { token })).status, 200);
  const others = instance.ready.workloads.filter(({ name }) => name !== 'echo');
  assert.ok(others.length > 0, 'alice has more than one');
  for (const { name, url } of others) {
    assert.equal((await request(instance, url, { token })).status, 404, name);
  }
  const listed = await request(instance, new URL('/api/workloads', instance.ready.portal), { token });
  assert.deepEqual(listed.json().map(({ name }) => name), ['echo']);
});

test('curl reaches echo with a token', needs('curl'), async () => {
  const args = ['--silent', '--show-error', '--cacert', instance.ready.ca, '--write-out', '\\n%{http_code}'];
  const result = await run('curl', [...args, '--header', `Authorization: Bearer ${alice}`, `${echo}some/path?q=1`]);
  assert.equal(result.code, 0, result.stderr);
  const [json, status] = result.stdout.trim().split('\n');
  assert.equal(status, '200');
  const { method, path, query } = JSON.parse(json);
  assert.deepEqual({ method, path, query }, { method: 'GET', path: '/some/path', query: 'q=1' });
});

test('a body arrives whole, with a length and in chunks', async () => {
  const body = 'dormouse '.repeat(7_000);
  const length = { 'content-length': Buffer.byteLength(body) };
  for (const headers of [length, { 'transfer-encoding': 'chunked' }]) {
    const response = await request(instance, echo, { method: 'POST', token: alice, headers, body });
    assert.equal(response.status, 200, response.text.slice(0, 300));
    assert.equal(response.json().body, body);
  }
});

test('events arrive one by one, and not at the end', async () => {
  const response = await open(instance, new URL('/events', echo), {
    token: alice,
    headers: { accept: 'text/event-stream' },
  });
  assert.equal(response.statusCode, 200);
  assert.match(response.headers['content-type'], /^text\/event-stream/);
  const arrivals = [];
  const three = (async () => {
    for await (const chunk of response) {
      arrivals.push({ at: Date.now(), text: chunk.toString() });
      const events = arrivals.map(({ text }) => text).join('').split('\n\n').length - 1;
      if (events >= 3 && arrivals.length >= 3) return;
    }
    throw new Error('the stream ended before three events came apart');
  })();
  await withDeadline('three events, each in a piece of its own', 30_000, three);
  response.destroy();
});

test('echo is told who calls, by us alone', async () => {
  const spoofed = {
    'x-forwarded-user': 'mallory',
    'X-Forwarded-Email': 'mallory@example.org',
    'x-forwarded-groups': 'admins',
    'x-forwarded-preferred-username': 'mallory',
    'x_forwarded_user': 'mallory',
    'x-forwarded-for': '203.0.113.9',
    'x-forwarded-host': 'mallory.example.org',
    'x-real-ip': '203.0.113.9',
    'x-remote-user': 'mallory',
    'remote-user': 'mallory',
    forwarded: 'for=203.0.113.9;host=mallory.example.org',
  };
  const response = await request(instance, echo, { token: alice, headers: spoofed });
  assert.equal(response.status, 200, response.text);
  assert.doesNotMatch(response.text, /mallory|203\.0\.113\.9/, 'nothing of the kind from outside');
  const headers = Object.fromEntries(response.json().headers);
  assert.equal(headers['x-forwarded-user'], 'alice');
  assert.match(headers['x-forwarded-email'], /^alice@/);
  assert.equal(headers['x-forwarded-groups'], undefined, 'alice is in no group');
  assert.equal(headers['x-forwarded-proto'], 'https');
  assert.equal(headers['x-forwarded-for'], '127.0.0.1');
  assert.ok(headers['x-forwarded-host'].startsWith(new URL(echo).hostname));
});

test('neither token nor cookie of ours reaches echo, other cookies do', async () => {
  const byToken = await request(instance, echo, {
    token: alice,
    headers: { cookie: 'theme=dark; __Host-dormouse=abc; __Host-dormouse-refresh=def; other=1' },
  });
  assert.equal(byToken.status, 200, byToken.text);
  assert.ok(!byToken.text.includes(alice), 'the bearer token');
  assert.doesNotMatch(byToken.text, /__Host-dormouse/i);
  assert.match(byToken.text, /theme=dark/);
  assert.match(byToken.text, /other=1/);

  const { session, page } = await signIn(instance, 'alice', echo);
  assert.equal(page.status, 200, page.text);
  assert.ok(session.cookies(echo).length > 0, 'the sign-in set a cookie');
  for (const { name, value, attributes } of session.cookies(echo)) {
    assert.match(name, /^__Host-dormouse/);
    assert.ok(attributes.includes('secure') && attributes.includes('httponly'), `${name}: ${attributes}`);
    assert.ok(!attributes.some((one) => one.startsWith('domain=')), `${name} is host-only`);
    assert.ok(!page.text.includes(value), `${name} does not reach the app`);
  }
  assert.doesNotMatch(page.text, /__Host-dormouse/i);
});

test('a navigation without a session goes to the login, all else gets 401', async () => {
  const page = await request(instance, echo, { headers: navigation });
  assert.equal(page.status, 302, page.text);
  assert.ok(page.headers.location.startsWith(instance.ready.issuer), page.headers.location);
  assert.match(page.headers.location, /code_challenge_method=S256/);

  assertUnauthorized(await request(instance, echo), 'an API call');
});

test('a form without a session gets a page that says what to do', async () => {
  const referer = new URL('/edit?page=1', echo).href;
  const page = await request(instance, echo, { method: 'POST', headers: { ...navigation, referer } });
  assert.equal(page.status, 401, page.text);
  assert.match(page.headers['www-authenticate'] ?? '', /^Bearer/i);
  assert.match(page.headers['content-type'], /^text\/html/);
  assert.match(page.text, /send it again/);
  assert.match(page.text, /href="\/edit\?page=1" target="_blank"/);
});

test('an app\'s own bearer token reaches it beside a session, and beside a token of ours', async () => {
  const { session } = await signIn(instance, 'alice', echo);
  const cookie = session.cookies(echo).map(({ name, value }) => `${name}=${value}`).join('; ');
  const authorization = 'Bearer sk-of-the-app';
  for (const headers of [{ cookie, authorization }, { 'dormouse-token': alice, authorization }]) {
    const page = await request(instance, echo, { headers });
    assert.equal(page.status, 200, page.text);
    assert.match(page.text, /Bearer sk-of-the-app/);
    assert.ok(!page.text.includes(alice) && !/dormouse/i.test(page.text), page.text);
  }
  assertUnauthorized(await request(instance, echo, { headers: { authorization } }), 'the app\'s token alone');
});

test('clients of Jupyter may say `token` in the header or in the query', async () => {
  for (const [url, headers] of [
    [echo, { authorization: `token ${alice}` }],
    [`${echo}?a=1&token=${alice}`, {}],
  ]) {
    const page = await request(instance, url, { headers });
    assert.equal(page.status, 200, page.text);
    assert.ok(!page.text.includes(alice), 'the token does not reach the app');
  }
  const opened = await request(instance, `${echo}tree?a=1&token=${alice}`, { headers: navigation });
  assert.equal(opened.status, 302);
  assert.equal(opened.headers.location, '/tree?a=1', 'it does not stay in the address bar');
});

const withLab = instance.workload('lab') ? {} : { skip: 'the instance has no `lab`: JupyterLab needs Python' };

test('a program with a token starts a kernel and ends it', { ...withLab, timeout: 120_000 }, async () => {
  const options = { token: alice, within: 65_000 };
  const headers = { 'content-type': 'application/json', 'content-length': 2 };
  const kernels = instance.url('lab', '/api/kernels');
  const made = await request(instance, kernels, { ...options, method: 'POST', headers, body: '{}' });
  assert.equal(made.status, 201, made.text);
  const ended = await request(instance, `${kernels}/${made.json().id}`, { ...options, method: 'DELETE' });
  assert.equal(ended.status, 204, ended.text);
});

test('a preflight is answered for every host alike, and opens nothing', async () => {
  const headers = {
    origin: 'https://front.example',
    'access-control-request-method': 'POST',
    'access-control-request-headers': 'authorization,content-type',
  };
  const nowhere = echo.replace('echo--', 'nothing--');
  const [there, missing] = await Promise.all(
    [echo, nowhere].map((url) => request(instance, `${url}v1/chat`, { method: 'OPTIONS', headers })),
  );
  assert.equal(there.status, 200, there.text);
  assert.equal(there.headers['access-control-allow-headers'], 'authorization,content-type');
  assert.equal(there.headers['access-control-allow-credentials'], undefined);
  for (const one of [there, missing]) delete one.headers.date;
  assert.deepEqual(there.headers, missing.headers);
});

test('a link longer than a cookie lands where it leads', async () => {
  const { page } = await signIn(instance, 'alice', `${echo}git-pull?urlpath=${'x'.repeat(2_000)}`);
  assert.equal(page.status, 200, page.text);
  assert.equal(new URL(page.url).pathname, '/git-pull');
  assert.equal(new URL(page.url).search.length, '?urlpath='.length + 2_000);
});

test('a host that is nobody\'s and a host that is somebody else\'s look the same', async () => {
  const bob = instance.token('bob');
  const { port } = new URL(echo);
  const base = new URL(instance.ready.portal).hostname.replace(/^portal\./, '');
  const nowhere = `https://nothing--here.${base}${port ? `:${port}` : ''}/`;
  const missing = await request(instance, nowhere, { token: bob });
  const forbidden = await request(instance, echo, { token: bob });
  for (const response of [missing, forbidden]) {
    assert.equal(response.status, 404, response.text);
    assertProblem(response, 404);
  }
  const { instance: one, ...left } = missing.json();
  const { instance: other, ...right } = forbidden.json();
  assert.deepEqual(left, right);
  assert.equal(one === undefined, other === undefined);
});

test('bob, signed in with a browser\'s session, gets 404 on alice\'s hosts', async () => {
  const { session, page } = await signIn(instance, 'bob', echo);
  assert.equal(page.status, 404, page.text.slice(0, 300));
  assert.equal(new URL(page.url).hostname, new URL(echo).hostname);
  for (const { name, url } of instance.ready.workloads) {
    assert.equal((await session.open(url)).status, 404, name);
  }
});

test('a tampered token gets 401', async () => {
  const [header, payload, signature] = alice.split('.');
  const middle = Math.floor(signature.length / 2);
  const flipped = signature[middle] === 'A' ? 'B' : 'A';
  const badSignature = `${signature.slice(0, middle)}${flipped}${signature.slice(middle + 1)}`;
  assertUnauthorized(await request(instance, echo, { token: `${header}.${payload}.${badSignature}` }), 'signature');

  const [, claims] = decode(alice);
  const badClaims = encode({ ...claims, preferred_username: 'bob' });
  assertUnauthorized(await request(instance, echo, { token: `${header}.${badClaims}.${signature}` }), 'claims');
  assertUnauthorized(await request(instance, echo, { token: 'not-a-token' }), 'no token at all');
});

test('alg none gets 401', async () => {
  const [header, claims] = decode(alice);
  for (const alg of ['none', 'None', 'HS256']) {
    const unsigned = `${encode({ ...header, alg })}.${encode(claims)}.`;
    assertUnauthorized(await request(instance, echo, { token: unsigned }), alg);
  }
});

test('a token for another audience gets 401', async () => {
  const foreign = await instance.issueToken('alice', '--audience', 'other');
  assertUnauthorized(await request(instance, echo, { token: foreign }), 'foreign audience');
});

test('a token that works stops working when it has expired', async () => {
  const token = await expiring;
  const [, { exp }] = decode(token);
  // Clocks may differ by half a minute, so that much later it must be over.
  const left = Math.max(exp * 1000 + 30_000 - Date.now(), 0);
  const response = await until(
    'the token to be refused',
    async () => {
      const answer = await request(instance, echo, { token });
      return answer.status === 401 && answer;
    },
    { within: left + 10_000, every: 1_000 },
  );
  assertUnauthorized(response, 'expired');
});
