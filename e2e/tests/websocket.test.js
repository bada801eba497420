// WebSockets to the echo app.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import WebSocket from 'ws';

import { lookup } from '../support/client.js';
import { withDeadline } from '../support/deadline.js';
import { sharedInstance } from '../support/instance.js';
import { signIn } from '../support/web_session.js';

const instance = await sharedInstance();
const socketUrl = instance.url('echo', '/ws').replace(/^https:/, 'wss:');
const UPGRADES = Number(process.env.DORMOUSE_E2E_UPGRADES ?? 10_000);
const AT_ONCE = 50;

function connect(headers = {}) {
  return new WebSocket(socketUrl, { ca: instance.ca, lookup, headers, perMessageDeflate: false });
}

/** One upgrade, one message, one close: answers what came back. */
function echoOnce(message, headers) {
  return new Promise((resolve, reject) => {
    const socket = connect(headers);
    let answer;
    socket.on('open', () => socket.send(message));
    socket.on('message', (data) => {
      answer = data.toString();
      socket.close(1000);
    });
    socket.on('close', (code) => {
      if (answer === undefined) reject(new Error(`closed with ${code} and no answer`));
      else resolve(answer);
    });
    socket.on('error', reject);
  });
}

/** What an upgrade is refused with: the status of the response. */
function refusal(headers) {
  return new Promise((resolve, reject) => {
    const socket = connect(headers);
    socket.on('open', () => {
      socket.terminate();
      reject(new Error('the upgrade was let through'));
    });
    socket.on('unexpected-response', (request, response) => {
      resolve(response.statusCode);
      request.destroy();
    });
    socket.on('error', reject);
  });
}

test(`${UPGRADES} upgrades, each echoing one message`, { timeout: 400_000 }, async (t) => {
  const headers = { authorization: `Bearer ${instance.token('alice')}` };
  const started = Date.now();
  const failures = [];
  let answers = 0;
  let next = 0;
  const worker = async () => {
    while (next < UPGRADES && failures.length < 20) {
      const message = `message ${next}`;
      next += 1;
      try {
        const answer = await withDeadline(`the answer to ${message}`, 30_000, echoOnce(message, headers));
        if (answer === message) answers += 1;
        else failures.push(`${message}: got ${answer}`);
      } catch (error) {
        failures.push(`${message}: ${error.message}`);
      }
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  t.diagnostic(`${answers} answers to ${UPGRADES} upgrades in ${((Date.now() - started) / 1000).toFixed(1)} s`);
  assert.deepEqual(failures, []);
  assert.equal(answers, UPGRADES);
});

test('a WebSocket stays open for a conversation, and ends with a Close frame', async () => {
  const socket = connect({ authorization: `Bearer ${instance.token('alice')}` });
  const received = [];
  const conversation = new Promise((resolve, reject) => {
    socket.on('open', () => socket.send('0'));
    socket.on('message', (data, binary) => {
      received.push(data.toString());
      if (received.length < 200) socket.send(String(received.length), { binary });
      else socket.close(1000, 'done');
    });
    socket.on('close', (code) => resolve(code));
    socket.on('error', reject);
  });
  assert.equal(await withDeadline('200 messages and the end', 30_000, conversation), 1000);
  assert.deepEqual(received, Array.from({ length: 200 }, (_, index) => String(index)));
});

test('attack_9: a page of another origin cannot use the session', async () => {
  const { session } = await signIn(instance, 'alice', instance.url('echo'));
  const cookie = session.cookieHeader(instance.url('echo'));
  const own = new URL(instance.url('echo')).origin;
  assert.equal(await echoOnce('hello', { cookie, origin: own }), 'hello', 'its own origin may');
  assert.equal(await refusal({ cookie, origin: 'https://evil.example' }), 403);
  assert.equal(await refusal({ cookie, origin: new URL(instance.ready.portal).origin }), 403, 'a neighbour');
  assert.equal(await refusal({ cookie, origin: 'null' }), 403, 'a sandboxed page');
});

test('without a session an upgrade gets 401, with a stranger\'s 404', async () => {
  assert.equal(await refusal({}), 401);
  assert.equal(await refusal({ authorization: `Bearer ${instance.token('bob')}` }), 404);
});
