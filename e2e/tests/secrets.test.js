// ATTACK 16: neither a workload nor a log ever gets to see a token or a cookie of ours.

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import path from 'node:path';
import { test } from 'node:test';
import WebSocket from 'ws';

import { lookup, navigation, request } from '../support/client.js';
import { withDeadline } from '../support/deadline.js';
import { repository, sharedInstance } from '../support/instance.js';
import { describe, secretsIn, secretsInLogs } from '../support/secrets.js';
import { signIn } from '../support/web_session.js';

const instance = await sharedInstance();
const echo = instance.url('echo');

test('attack_16: what is looked for would be found', () => {
  const token = `eyJ${'a'.repeat(40)}.eyJ${'b'.repeat(80)}.${'c'.repeat(80)}`;
  for (const line of [`x ${token}`, 'Cookie: __Host-dormouse-refresh=abcdefgh123', 'GET /cb?code=abcdefgh123&x', 'a Bearer abcdefgh12345678']) {
    assert.notDeepEqual(secretsIn(`well\n${line}\nwell`), [], line);
  }
  assert.deepEqual(secretsIn('GET /path?a=b __Host-dormouse= state=Running Bearer token'), []);
});

test('attack_16: no cookie or token of ours reaches a workload or a log', async () => {
  const token = instance.token('alice');
  const { session } = await signIn(instance, 'alice', echo);
  const cookie = session.cookieHeader(echo);
  const broken = token.slice(0, -6) + randomBytes(3).toString('hex');
  const known = [token, broken, ...session.cookies(echo).map(({ value }) => value)];
  // Good and bad ones, wherever somebody could put them.
  const sent = [
    { headers: { authorization: `Bearer ${token}` } },
    { headers: { authorization: `bearer  ${token}` } },
    { headers: { cookie: `a=1; ${cookie}; b=2` } },
    { headers: { ...navigation, cookie } },
    { headers: { authorization: `Bearer ${broken}` } },
    { headers: { cookie: cookie.replace(/\.[\w-]{6}/, '.aaaaaa') } },
    { headers: { authorization: `Bearer ${token}`, cookie } },
  ];
  for (const options of sent) {
    const { status, text } = await request(instance, echo, options);
    assert.ok([200, 302, 401].includes(status), `${status}`);
    const seen = secretsIn(status === 200 ? text : '', known);
    assert.deepEqual(seen, [], 'the echo app says what it was sent');
  }
  // Tokens in the address are the client's own doing: the workload gets them, and still no log does.
  await request(instance, `${echo}?access_token=${token}`, { token });
  await request(instance, `${echo}.dormouse/callback?code=${broken.slice(-40)}&state=${broken.slice(-30)}`, { headers: navigation });
  await request(instance, `${new URL(instance.ready.issuer).origin}/token`, {
    method: 'POST',
    headers: { 'content-type': 'application/x-www-form-urlencoded' },
    body: `grant_type=refresh_token&refresh_token=${known.at(-1)}`,
  });
  const socket = new WebSocket(echo.replace(/^https:/, 'wss:') + 'ws', {
    ca: instance.ca,
    lookup,
    headers: { cookie, origin: new URL(echo).origin },
  });
  await withDeadline('the end of a WebSocket', 20_000, new Promise((resolve, reject) => {
    socket.on('open', () => socket.close());
    socket.on('close', resolve);
    socket.on('error', reject);
  }));

  const folders = [path.join(repository, 'e2e', 'artifacts'), instance.dataDir];
  const { files, found } = secretsInLogs(folders, known);
  assert.ok(files.includes(instance.logFile), `the log is among ${files.join(', ')}`);
  assert.equal(describe(found), '');
});
