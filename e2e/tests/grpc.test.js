// gRPC end to end: Python's grpcio on both sides, HTTP/2 with TLS to us and without to the pod.

import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import path from 'node:path';
import { after, test } from 'node:test';

import { run } from '../support/command.js';
import { resource } from '../support/cluster.js';
import { until } from '../support/deadline.js';
import { repository, sharedInstance } from '../support/instance.js';
import { kubectlOk, needsKubectl } from '../support/kubectl.js';

const python = path.join(repository, '.dev', 'grpc', 'bin', 'python');
const needed = existsSync(python) ? needsKubectl : { skip: 'grpcio is not installed; run `make e2e`' };
const instance = await sharedInstance();

const app = {
  apiVersion: 'dormouse.dev/v1alpha1',
  kind: 'App',
  metadata: { name: 'calls', namespace: instance.project },
  spec: {
    owner: 'alice',
    image: 'grpc',
    command: [python, path.join(repository, 'e2e', 'grpc', 'server.py'), '$(POD_IP):50051'],
    port: 50051,
    appProtocol: 'grpc',
  },
};

after(async () => {
  if (!needed.skip) await kubectlOk(instance, ['delete', 'app', 'calls', '-n', instance.project, '--ignore-not-found']);
});

test('every kind of gRPC call, with errors in trailers, deadlines and cancels', { ...needed, timeout: 180_000 }, async () => {
  await kubectlOk(instance, ['apply', '-f', '-'], JSON.stringify(app));
  const url = await until(
    'the app to run',
    async () => {
      const { status } = await resource(instance, 'App', 'calls');
      return status?.phase === 'Running' && new URL(status.url);
    },
    { within: 90_000, every: 200 },
  );
  const script = path.join(repository, 'e2e', 'grpc', 'client.py');
  const args = [script, url.port, url.hostname, instance.ready.ca, instance.token('alice')];
  const { code, stdout, stderr } = await run(python, args, { within: 120_000 });
  assert.equal(code, 0, stderr);
  const said = JSON.parse(stdout);
  assert.deepEqual(said.metadata, {
    'x-forwarded-user': 'alice',
    authorization: '',
    te: '',
    'x-mine': 'here',
    trailers: said.metadata.trailers,
  });
  assert.ok(Number(said.metadata.trailers['x-count']) > 0, 'trailers of an answer that went well');
  assert.ok(said['server stream'], 'a stream from the server');
  assert.equal(said['client stream'], 300_000);
  assert.ok(said.conversation, 'messages both ways, one by one');
  const error = { code: 'FAILED_PRECONDITION', details: 'as you wish: 100 %', why: 'asked' };
  assert.deepEqual(said.error, error);
  assert.deepEqual(said['error in a conversation'], { code: 'ABORTED', details: 'in the middle', why: null });
  assert.deepEqual(said.deadline, {
    told: true,
    code: 'DEADLINE_EXCEEDED',
    'in time': true,
    'reached the pod': 'yes',
  });
  assert.ok(said.large, 'three MiB each way');
  assert.equal(said['without a token'], 'UNAUTHENTICATED');
});
