// The settings that the documentation shows are settings that the services take.

import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';

import { run } from '../support/command.js';
import { binary, repository, temporaryFolder } from '../support/instance.js';

const page = readFileSync(path.join(repository, 'docs', 'settings.md'), 'utf8');
const examples = [...page.matchAll(/^### ([a-z-]+)\n\n```toml\n([\s\S]*?)```/gm)];
const folder = temporaryFolder('settings');

test('every service has an example', () => {
  const services = examples.map(([, service]) => service).sort();
  assert.deepEqual(services, ['authserver', 'controller', 'portal', 'proxy', 'ssh-gateway']);
});

for (const [, service, toml] of examples) {
  test(`dormouse ${service} takes its example`, async () => {
    const file = path.join(folder, `${service}.toml`);
    writeFileSync(file, toml);
    // No cluster and none of the files are there, which is what it then says: the settings are past.
    const env = { HOME: folder, KUBECONFIG: '', KUBERNETES_SERVICE_HOST: '' };
    const { code, stderr } = await run(binary, [service, '--config', file], { env, within: 20_000 });
    assert.notEqual(code, 0);
    assert.match(stderr, /no cluster found|cannot read the secret file/, stderr);
    assert.doesNotMatch(stderr, new RegExp(path.basename(file)), 'nothing is wrong with the file');
  });
}
