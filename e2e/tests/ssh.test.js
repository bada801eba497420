// OpenSSH into the workspace.

import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import { after, test } from 'node:test';

import { needs, run } from '../support/command.js';
import { request } from '../support/client.js';
import { until } from '../support/deadline.js';
import { freePort, sharedInstance, temporaryFolder } from '../support/instance.js';
import { SshHome } from '../support/openssh.js';
import { signIn } from '../support/web_session.js';
import { Terminal } from '../support/terminal.js';

const instance = await sharedInstance();
const lab = instance.workload('lab');
const alice = new SshHome(instance, { token: instance.token('alice') });
const folder = temporaryFolder('copies');
const withSsh = lab ? needs('ssh') : { skip: 'the instance has no workspace `lab`' };

const sha256 = (bytes) => createHash('sha256').update(bytes).digest('hex');

test('a command gives its output, its exit code, and its errors apart', withSsh, async () => {
  const result = await alice.exec('echo $((6*7)); echo oops >&2; exit 3', { user: lab.ssh_user });
  assert.deepEqual(
    { stdout: result.stdout, stderr: result.stderr, code: result.code },
    { stdout: '42\n', stderr: 'oops\n', code: 3 },
  );
});

test('lab is enough of a name while there is one lab', withSsh, async () => {
  for (const user of ['lab', `lab.${instance.project}`]) {
    const result = await alice.exec('echo here', { user });
    assert.equal(result.stdout, 'here\n', result.stderr);
  }
});

test('standard input reaches the command, and its end too', withSsh, async () => {
  const input = randomBytes(300_000);
  const result = await alice.exec('sha256sum', { input });
  assert.equal(result.code, 0, result.stderr);
  assert.equal(result.stdout.split(' ')[0], sha256(input));
});

test('scp of 100 MiB both ways keeps the hash', { ...withSsh, timeout: 240_000 }, async (t) => {
  const original = path.join(folder, 'original.bin');
  const returned = path.join(folder, 'returned.bin');
  const bytes = randomBytes(100 * 1024 * 1024);
  writeFileSync(original, bytes);
  const expected = sha256(bytes);

  const up = await alice.scp(original, 'remote:scp-100MiB.bin', { within: 100_000 });
  assert.equal(up.code, 0, up.stderr);
  const remote = await alice.exec('sha256sum scp-100MiB.bin');
  assert.equal(remote.stdout.split(' ')[0], expected, remote.stderr);

  const down = await alice.scp('remote:scp-100MiB.bin', returned, { within: 100_000 });
  assert.equal(down.code, 0, down.stderr);
  assert.equal(sha256(readFileSync(returned)), expected);
  t.diagnostic(`up in ${up.seconds.toFixed(1)} s, down in ${down.seconds.toFixed(1)} s`);
  await alice.exec('rm -f scp-100MiB.bin');
});

test('sftp makes, lists, renames and removes', withSsh, async () => {
  const file = path.join(folder, 'small.txt');
  const back = path.join(folder, 'small-back.txt');
  writeFileSync(file, 'some words\n');
  const result = await alice.sftp([
    'mkdir sftp-test',
    `put ${file} sftp-test/one.txt`,
    'rename sftp-test/one.txt sftp-test/two.txt',
    'ls -1 sftp-test',
    `get sftp-test/two.txt ${back}`,
    'rm sftp-test/two.txt',
    'rmdir sftp-test',
  ]);
  assert.equal(result.code, 0, `${result.stdout}${result.stderr}`);
  assert.match(result.stdout, /sftp-test\/two\.txt/);
  assert.equal(readFileSync(back, 'utf8'), 'some words\n');
  const wrong = await alice.sftp(['get no-such-file']);
  assert.notEqual(wrong.code, 0);
});

test('ssh -L to JupyterLab\'s own port serves its page', { ...withSsh, timeout: 60_000 }, async () => {
  const local = await freePort();
  const flags = ['-N', '-o', 'ExitOnForwardFailure=yes', '-L', `127.0.0.1:${local}:localhost:8888`];
  const client = alice.background(flags);
  after(() => client.kill());
  const page = await until('the forwarded port to serve JupyterLab', () => {
    if (client.exitCode !== null) throw new Error(`ssh ended: ${client.said}`);
    return get(`http://127.0.0.1:${local}/lab`);
  });
  assert.equal(page.status, 200, page.text.slice(0, 300));
  assert.match(page.text, /JupyterLab/);
  client.kill();
});

function get(url) {
  return new Promise((resolve, reject) => {
    const sent = http.get(url, { agent: false }, async (response) => {
      let text = '';
      for await (const chunk of response) text += chunk;
      resolve({ status: response.statusCode, text });
    });
    sent.on('error', reject);
  });
}

test('ssh -R gives the workspace a port of this machine', { ...withSsh, ...needs('ssh', 'curl'), timeout: 60_000 }, async () => {
  const server = http.createServer((_, response) => response.end('from outside\n'));
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  after(() => server.close());
  const remote = await freePort();
  const flags = ['-o', 'ExitOnForwardFailure=yes', '-R', `${remote}:127.0.0.1:${server.address().port}`];
  const command = `curl -sS "http://\${DORMOUSE_POD_LOOPBACK:-localhost}:${remote}/"`;
  const result = await alice.exec(command, { flags });
  assert.equal(result.stdout, 'from outside\n', result.stderr);
});

test('localhost in ssh -L is the workspace\'s own, and not the machine\'s', { ...withSsh, ...needs('ssh', 'python3'), timeout: 60_000 }, async () => {
  const [inside, local, localToMachine] = [await freePort(), await freePort(), await freePort()];
  const onMachine = http.createServer((_, response) => response.end('the machine\'s\n'));
  await new Promise((resolve) => onMachine.listen(0, '127.0.0.1', resolve));
  after(() => onMachine.close());
  const serve = `mkdir -p /tmp/e2e-$$ && cd /tmp/e2e-$$ && echo inside > index.html && exec python3 -m http.server -b 127.0.0.1 ${inside}`;
  const server = alice.background([], { command: serve });
  after(() => server.kill());
  const machine = onMachine.address().port;
  const client = alice.background([
    '-N', '-L', `127.0.0.1:${local}:localhost:${inside}`, '-L', `127.0.0.1:${localToMachine}:localhost:${machine}`,
  ]);
  after(() => client.kill());
  const page = await until('the server inside to answer', () => get(`http://127.0.0.1:${local}/`));
  assert.equal(page.text, 'inside\n');
  await assert.rejects(get(`http://127.0.0.1:${localToMachine}/`), 'the machine\'s server is out of reach');
  client.kill();
  server.kill();
});

test('a command over SSH reads ~/.bashrc, as under sshd', { ...withSsh, ...needs('ssh', 'bash') }, async (t) => {
  const command = 'export CASE=unset; f=~/.bashrc; cp -p $f $f.e2e 2>/dev/null; echo "export CASE=read" > $f; echo "${SSH_CONNECTION:-none}; $0"';
  const asked = await alice.exec(command);
  assert.match(asked.stdout, /^\S+ \d+ \S+ \d+; /, asked.stderr);
  const seen = await alice.exec('echo $CASE; rm ~/.bashrc; [ ! -f ~/.bashrc.e2e ] || mv ~/.bashrc.e2e ~/.bashrc');
  if (!/bash$/.test(asked.stdout.trim())) return t.skip('the shell of this machine\'s user is not bash');
  assert.equal(seen.stdout, 'read\n', seen.stderr);
});

test('a terminal\'s size follows the window\'s', { ...withSsh, ...needs('ssh', 'python3') }, async () => {
  const command = ['ssh', ...alice.sshArguments({ flags: ['-tt'] })];
  const terminal = new Terminal(command, { rows: 24, columns: 80, env: alice.environment });
  after(() => terminal.close());
  terminal.type('stty size\n');
  await terminal.see(/\b24 80\b/);
  terminal.resize(51, 133);
  // The new size is on its way: ask until it has come.
  await until('the new size', () => {
    terminal.type('stty size\n');
    return /\b51 133\b/.test(terminal.output);
  });
  terminal.type('echo term=$TERM; tty; exit 5\n');
  await terminal.see(/\/dev\/pts\/\d+/);
  assert.equal(await terminal.exited, 5);
});

test('a registered public key signs in, and a removed one no longer', withSsh, async () => {
  const identity = path.join(folder, 'id_ed25519');
  const made = await run('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-C', 'e2e', '-f', identity]);
  assert.equal(made.code, 0, made.stderr);
  const byKey = new SshHome(instance, { identity });
  const before = await byKey.exec('echo in');
  assert.equal(before.code, 255, 'a key that nobody registered is refused');

  const account = `${instance.ready.issuer.replace(/\/$/, '')}/account`;
  const keys = `${instance.ready.issuer.replace(/\/$/, '')}/ssh/keys`;
  const token = instance.token('alice');
  const leaked = await request(instance, `${keys}/challenge`, { method: 'POST', token });
  assert.equal(leaked.status, 403, 'a personal token alone registers no key');

  // As the account page says: run its command, and paste what it prints.
  const { session, page } = await signIn(instance, 'alice', account);
  const [, text, namespace] = /<code>echo (\S+) \| ssh-keygen -Y sign -n (\S+) -f/.exec(page.text);
  const challenge = /name="challenge" value="([^"]+)"/.exec(page.text)[1];
  const signed = await run('ssh-keygen', ['-Y', 'sign', '-n', namespace, '-f', identity], { input: `${text}\n` });
  assert.equal(signed.code, 0, signed.stderr);
  const body = new URLSearchParams({ name: 'e2e', challenge, signature: signed.stdout }).toString();
  const headers = {
    'content-type': 'application/x-www-form-urlencoded',
    'content-length': Buffer.byteLength(body),
    origin: new URL(account).origin,
  };
  const registered = await session.open(`${account}/ssh-keys`, { method: 'POST', headers, body });
  assert.match(registered.text, /e2e<\/strong>/);
  assert.match(registered.text, /Ends <time>/);

  await until('the key to be let in', async () => (await byKey.exec('echo in')).stdout === 'in\n');
  const { code } = await byKey.exec('exit 7');
  assert.equal(code, 7);

  const listed = await request(instance, keys, { token });
  const { id } = listed.json().keys.find(({ name }) => name === 'e2e');
  const removed = await request(instance, `${keys}/${encodeURIComponent(id)}`, { method: 'DELETE', token });
  assert.ok([200, 204].includes(removed.status), `${removed.status} ${removed.text}`);
  await until('the key to be refused', async () => (await byKey.exec('echo in')).code === 255);
});

test('bob cannot enter lab.alice, and learns no more than of a lab that is not there', withSsh, async () => {
  const bob = new SshHome(instance, { token: instance.token('bob') });
  const forbidden = await bob.exec('echo in', { user: `lab.${instance.project}` });
  const missing = await bob.exec('echo in', { user: `nothing.${instance.project}` });
  assert.equal(forbidden.stdout, '');
  assert.equal(missing.stdout, '');
  assert.notEqual(forbidden.code, 0);
  assert.equal(forbidden.code, missing.code);
  const without = ({ stderr }) => stderr.replaceAll(/nothing|lab/g, 'NAME');
  assert.equal(without(forbidden), without(missing));
});

test('a wrong token is refused', withSsh, async () => {
  const stranger = new SshHome(instance, { token: `${instance.token('alice').slice(0, -6)}AAAAAA` });
  const result = await stranger.exec('echo in');
  assert.equal(result.code, 255);
  assert.match(result.stderr, /Permission denied/);
});

test('an unknown workspace in the user name is one line that says what to do', withSsh, async () => {
  const result = await alice.exec('echo in', { user: 'nolab' });
  assert.notEqual(result.code, 0);
  assert.equal(result.stdout, '');
  const lines = result.stderr.split(/\r?\n/).filter((line) => line.trim() !== '');
  assert.equal(lines.length, 1, result.stderr);
  assert.match(lines[0], /nolab/);
});
