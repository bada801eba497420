// Large bodies with curl, over HTTP/1.1 and HTTP/2: they pass, and the gateway does not grow by them.

import assert from 'node:assert/strict';
import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { after, test } from 'node:test';

import { needs, run } from '../support/command.js';
import { resource } from '../support/cluster.js';
import { until } from '../support/deadline.js';
import { repository, sharedInstance, temporaryFolder } from '../support/instance.js';
import { kubectlOk, needsKubectl } from '../support/kubectl.js';

const needed = { ...needsKubectl, ...needs('curl', 'python3') };
const instance = await sharedInstance();
const BYTES = Number(process.env.DORMOUSE_E2E_BULK ?? 256 * 1024 * 1024);
/** What buffers, windows and the allocator may take, however long the bodies are. */
const GROWTH_MAX = 64 * 1024 * 1024;

const app = {
  apiVersion: 'dormouse.dev/v1alpha1',
  kind: 'App',
  metadata: { name: 'bulk', namespace: instance.project },
  spec: {
    owner: 'alice',
    image: 'bulk',
    command: ['python3', path.join(repository, 'e2e', 'support', 'bulk_server.py'), '$(POD_IP)', '8080'],
  },
};

after(async () => {
  if (!needed.skip) await kubectlOk(instance, ['delete', 'app', 'bulk', '-n', instance.project, '--ignore-not-found']);
});

function resident() {
  const status = readFileSync(`/proc/${instance.pid}/status`, 'utf8');
  return Number(/VmRSS:\s+(\d+) kB/.exec(status)[1]) * 1024;
}

test('large bodies, ranges and HEAD', { ...needed, timeout: 600_000 }, async (t) => {
  await kubectlOk(instance, ['apply', '-f', '-'], JSON.stringify(app));
  const url = await until(
    'the app to run',
    async () => {
      const { status } = await resource(instance, 'App', 'bulk');
      return status?.phase === 'Running' && status.url;
    },
    { within: 90_000, every: 200 },
  );
  const { port, hostname } = new URL(url);
  const curl = async (...args) => {
    const all = ['--silent', '--show-error', '--fail', '--cacert', instance.ready.ca, ...args];
    all.push('--resolve', `${hostname}:${port}:127.0.0.1`);
    all.push('--header', `Authorization: Bearer ${instance.token('alice')}`);
    const { code, stdout, stderr } = await run('curl', all, { within: 300_000 });
    assert.equal(code, 0, stderr);
    return stdout;
  };
  const file = path.join(temporaryFolder('bulk'), 'zeros');
  writeFileSync(file, '');
  truncateSync(file, BYTES);
  const took = ['--output', '/dev/null', '--write-out', '%{size_download} %{http_version} %{time_total}'];
  for (const version of ['--http1.1', '--http2']) {
    // The first of its kind pays for what stays.
    await curl(version, ...took, `${url}${32 * 1024 * 1024}`);
    const before = resident();
    const [down, spoken, seconds] = (await curl(version, ...took, `${url}${BYTES}`)).split(' ');
    assert.equal(Number(down), BYTES);
    const up = await curl(version, '--upload-file', file, `${url}up`);
    assert.equal(Number(up), BYTES);
    const growth = resident() - before;
    t.diagnostic(`HTTP/${spoken}: ${BYTES >> 20} MiB down in ${seconds} s, and up; ${growth >> 10} KiB more resident`);
    assert.ok(growth < GROWTH_MAX, `${growth} bytes more after ${version}`);
    const head = await curl(version, '--head', `${url}12345`);
    assert.match(head, /content-length: 12345/i);
    const part = await curl(version, '--include', '--range', '65-67', `${url}1000`);
    assert.match(part, / 206/);
    assert.match(part, /content-range: bytes 65-67\/1000/i);
    assert.ok(part.endsWith('ABC'), part);
  }
});
