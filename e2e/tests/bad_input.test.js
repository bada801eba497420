// What a person gets who asks for something that cannot be: one line that says what to do.

import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';

import { foreignKubeconfig, freePort, sharedInstance, temporaryFolder } from '../support/instance.js';

const instance = await sharedInstance();
const folder = temporaryFolder('bad-input');

/** Runs `dormouse` and asserts that it fails with one line, which matches all patterns. */
async function fails(args, ...patterns) {
  const result = await instance.dormouse(args, { within: 30_000 });
  const command = `dormouse ${args.join(' ')}`;
  assert.notEqual(result.code, 0, `${command} succeeded: ${result.stdout}`);
  const lines = result.stderr.split('\n').filter((line) => line.trim() !== '');
  assert.equal(lines.length, 1, `${command} said:\n${result.stderr}`);
  for (const pattern of patterns) assert.match(lines[0], pattern);
  assert.doesNotMatch(lines[0], /panicked|RUST_BACKTRACE|Os \{/);
}

async function dev({ dataDir = path.join(folder, 'data'), httpsPort, sshPort, flags = [] } = {}) {
  const args = ['dev', '--data-dir', dataDir, '--https-port', String(httpsPort ?? (await freePort()))];
  args.push('--ssh-port', String(sshPort ?? (await freePort())));
  if (foreignKubeconfig) args.push('--kubeconfig', foreignKubeconfig);
  return [...args, ...flags];
}

test('a wrong flag', async () => {
  await fails(['dev', '--htps-port', '8443'], /--htps-port/, /--https-port/);
});

test('a wrong command', async () => {
  await fails(['prxy'], /prxy/, /proxy/);
});

test('a duration that is none', async () => {
  await fails(await dev({ flags: ['--idle-after', 'soon'] }), /idle-after/, /soon/);
});

test('the HTTPS port is in use', async () => {
  await fails(await dev({ httpsPort: instance.httpsPort }), new RegExp(`${instance.httpsPort}`), /--https-port/);
});

test('the SSH port is in use', async () => {
  await fails(await dev({ sshPort: instance.sshPort }), new RegExp(`${instance.sshPort}`), /--ssh-port/);
});

test('the data directory cannot be written', async () => {
  const file = path.join(folder, 'a-file');
  writeFileSync(file, '');
  const dataDir = path.join(file, 'below');
  await fails(await dev({ dataDir }), new RegExp(dataDir), /--data-dir/);
});

test('a second instance on one data directory', async () => {
  const dataDir = instance.dataDir;
  await fails(await dev({ dataDir }), new RegExp(dataDir), /--data-dir|already|other/);
});

test('a kubeconfig that is not there', async () => {
  const file = path.join(folder, 'no-kubeconfig');
  const args = ['dev', '--data-dir', path.join(folder, 'other'), '--kubeconfig', file];
  args.push('--https-port', String(await freePort()), '--ssh-port', String(await freePort()));
  await fails(args, new RegExp(file), /kubeconfig/);
});

test('a file of clients with a mistake, or none', async () => {
  const file = path.join(folder, 'clients.toml');
  const flags = ['--clients', file];
  await fails(await dev({ flags }), new RegExp(file), /--clients/);
  writeFileSync(file, '[[clients]]\nid = "hub"\nredirects = []\n');
  await fails(await dev({ flags }), /redirects/, /:3:/, /redirect_uris/);
});

test('a setting that is not there names the key, its line and the nearest', async () => {
  const file = path.join(folder, 'proxy.toml');
  writeFileSync(file, '# the gate\n[proxy]\nbase_domian = "example.org"\n');
  await fails(['proxy', '--config', file], /base_domian/, /:3:/, /base_domain/);
});
