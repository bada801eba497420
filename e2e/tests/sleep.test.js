// Falling asleep, waking up, and staying awake while somebody is there.

import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { after, test } from 'node:test';
import WebSocket from 'ws';

import { fillSignIn, launchBrowser, needsBrowser, picture, withPage } from '../support/browser.js';
import { lookup, request } from '../support/client.js';
import { PhaseWatch, podsOf, resource } from '../support/cluster.js';
import { needs, run } from '../support/command.js';
import { repeatedly, until } from '../support/deadline.js';
import { ownInstance } from '../support/instance.js';
import { SshHome } from '../support/openssh.js';
import { Terminal } from '../support/terminal.js';

const IDLE_AFTER = 20_000;
/** From the last activity to `Sleeping`: the timeout, a gathering interval, the end of the process. */
const ASLEEP_WITHIN = IDLE_AFTER + 25_000;
/** Somebody who is there for this long would have been missed by now. */
const STAYS = IDLE_AFTER * 1.6;

const instance = await ownInstance('sleep', ['--idle-after', '20s']);
const token = instance.token('alice');
const alice = new SshHome(instance, { token });
const withLab = instance.workload('lab') ? {} : { skip: 'the instance has no workspace `lab`' };
const echo = new PhaseWatch(instance, 'App', 'echo');
const lab = instance.workload('lab') && new PhaseWatch(instance, 'Workspace', 'lab');
after(() => {
  echo.close();
  lab?.close();
});
const kept = `kept-${instance.mark}.txt`;

const jupyter = () => instance.processes().filter(({ command }) => /jupyter-?lab/.test(command));

/** Paths of files with that name under a folder. */
function find(folder, name) {
  const found = readdirSync(folder, { recursive: true });
  return found.filter((file) => path.basename(file) === name);
}

test('an untouched workspace falls asleep: its process is gone, its files are there', { ...withLab, timeout: 180_000 }, async (t) => {
  await lab.reaches('Running', 60_000);
  const written = await alice.exec(`echo still here > ${kept}`);
  assert.equal(written.code, 0, written.stderr);
  assert.ok(jupyter().length > 0, 'JupyterLab runs as a process of the instance');
  const left = Date.now();
  await lab.reaches('Sleeping', ASLEEP_WITHIN);
  t.diagnostic(`asleep ${((Date.now() - left) / 1000).toFixed(1)} s after the last touch`);
  await until('JupyterLab\'s process to be gone', () => jupyter().length === 0, { within: 15_000 });
  const object = await resource(instance, 'Workspace', 'lab');
  await until('its pod to be gone', async () => (await podsOf(instance, object)).length === 0, { within: 15_000 });
  assert.equal(find(instance.dataDir, kept).length, 1, `${kept} is on the volume`);
});

test('an API call to a sleeping app is held, and answered', { ...needs('curl'), timeout: 180_000 }, async (t) => {
  await echo.reaches('Sleeping', ASLEEP_WITHIN + 30_000);
  const args = ['--silent', '--show-error', '--cacert', instance.ready.ca, '--write-out', '\\n%{http_code}'];
  args.push('--header', `Authorization: Bearer ${token}`, instance.url('echo'));
  const { code, stdout, stderr, seconds } = await run('curl', args, { within: 65_000 });
  assert.equal(code, 0, stderr);
  assert.match(stdout, /\n200$/);
  t.diagnostic(`held for ${seconds.toFixed(1)} s`);
  await echo.reaches('Running', 10_000);
});

test('a navigation shows the waiting page, and then JupyterLab', { ...withLab, ...needsBrowser, timeout: 240_000 }, async (t) => {
  const browser = await launchBrowser(instance);
  after(() => browser.close());
  await lab.reaches('Sleeping', ASLEEP_WITHIN);
  await withPage(browser, 'waking', {}, async (page) => {
    const seen = new Set();
    page.on('response', (response) => {
      if (response.request().isNavigationRequest()) seen.add(`${response.status()} ${new URL(response.url()).pathname}`);
    });
    await page.goto(instance.url('lab'));
    await fillSignIn(page, instance.user('alice'));
    await page.waitForURL((now) => now.hostname === new URL(instance.url('lab')).hostname);
    const started = Date.now();
    await page.getByRole('status').waitFor({ timeout: 10_000 });
    await picture(page, 'waking');
    const said = await page.getByRole('status').innerText();
    assert.ok(said.trim().length > 0, 'the waiting page says how far it is');
    await page.locator('#jp-main-dock-panel, .jp-Launcher').first().waitFor({ timeout: 90_000 });
    t.diagnostic(`"${said.trim()}", JupyterLab after ${((Date.now() - started) / 1000).toFixed(1)} s; ${[...seen].join(', ')}`);
  });
  const back = await alice.exec(`cat ${kept}`);
  assert.equal(back.stdout, 'still here\n', back.stderr);
});

test('ssh into a sleeping workspace prints progress and succeeds', { ...withLab, ...needs('ssh'), timeout: 240_000 }, async (t) => {
  await lab.reaches('Sleeping', ASLEEP_WITHIN);
  const { code, stdout, stderr, seconds } = await alice.exec(`cat ${kept}`, { within: 90_000 });
  assert.equal(code, 0, stderr);
  assert.equal(stdout, 'still here\n', 'progress is not in the output');
  const order = ['requested', 'scheduled', 'starting', 'almost ready'];
  const steps = [...stderr.matchAll(/\.\.\. (requested|scheduled|starting|almost ready):/g)].map(([, step]) => order.indexOf(step));
  assert.ok(steps.length > 0, `progress on standard error: ${stderr}`);
  assert.deepEqual(steps, steps.toSorted((one, other) => one - other), `progress never goes back: ${stderr}`);
  t.diagnostic(`${seconds.toFixed(1)} s; ${stderr.trim().split(/\r?\n/).join(' / ')}`);
});

/** Asserts that the workspace runs all the while that somebody does something. */
async function staysAwake(action) {
  await lab.reaches('Running', 60_000);
  lab.restart();
  const stop = repeatedly(2_000, action);
  try {
    await pause(STAYS);
  } finally {
    stop();
  }
  assert.deepEqual(lab.history.map(({ phase }) => phase), ['Running']);
}

test('typing in a terminal over SSH keeps it awake', { ...withLab, ...needs('ssh', 'python3'), timeout: 180_000 }, async () => {
  const command = ['ssh', ...alice.sshArguments({ flags: ['-tt'] })];
  const terminal = new Terminal(command, { env: alice.environment });
  after(() => terminal.close());
  terminal.type('echo $((6*7))\n');
  await terminal.see(/\b42\b/, { within: 60_000 });
  await staysAwake(() => terminal.type('#'));
  terminal.type('\necho $((9*9))\n');
  await terminal.see(/\b81\b/);
  terminal.type('exit\n');
  assert.equal(await terminal.exited, 0);
});

test('typing in JupyterLab\'s terminal keeps it awake', { ...withLab, timeout: 180_000 }, async () => {
  const page = await request(instance, instance.url('lab', '/lab'), { token, within: 65_000 });
  assert.equal(page.status, 200, page.text.slice(0, 300));
  const cookies = (page.headers['set-cookie'] ?? []).map((line) => line.split(';')[0]);
  const xsrf = cookies.find((one) => one.startsWith('_xsrf='))?.slice('_xsrf='.length);
  const headers = { cookie: cookies.join('; '), ...(xsrf ? { 'x-xsrftoken': xsrf } : {}) };
  const made = await request(instance, instance.url('lab', '/api/terminals'), { method: 'POST', token, headers });
  assert.equal(made.status, 200, made.text);

  const url = instance.url('lab', `/terminals/websocket/${made.json().name}`).replace(/^https:/, 'wss:');
  const socket = new WebSocket(url, { ca: instance.ca, lookup, headers: { authorization: `Bearer ${token}` } });
  after(() => socket.terminate());
  let output = '';
  socket.on('message', (data) => {
    const [kind, text] = JSON.parse(data.toString());
    if (kind === 'stdout') output += text;
  });
  await new Promise((resolve, reject) => {
    socket.once('open', resolve);
    socket.once('error', reject);
  });
  const type = (text) => socket.send(JSON.stringify(['stdin', text]));
  type('echo $((6*7))\r');
  await until('the terminal\'s answer', () => /\b42\b/.test(output));
  await staysAwake(() => type('#'));
  assert.equal(socket.readyState, WebSocket.OPEN);
});

test('an open terminal that nobody types in lets it fall asleep', { ...withLab, timeout: 120_000 }, async () => {
  await lab.reaches('Sleeping', ASLEEP_WITHIN);
});
