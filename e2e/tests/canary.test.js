// A canary of an app: who gets it, what kubectl shows of it, and that it goes without a trace.

import assert from 'node:assert/strict';
import { after, test } from 'node:test';

import { needs } from '../support/command.js';
import { request } from '../support/client.js';
import { resource } from '../support/cluster.js';
import { until } from '../support/deadline.js';
import { sharedInstance } from '../support/instance.js';
import { kubectl, kubectlOk, needsKubectl, row } from '../support/kubectl.js';

const needed = { ...needsKubectl, ...needs('python3') };
const instance = await sharedInstance();

const program = `
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def do_GET(self):
        said = os.environ["SIDE"].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)
http.server.ThreadingHTTPServer((sys.argv[1], 8080), Handler).serve_forever()
`;

function app(canary) {
  return JSON.stringify({
    apiVersion: 'dormouse.dev/v1alpha1',
    kind: 'App',
    metadata: { name: 'twofold', namespace: instance.project },
    spec: {
      owner: 'alice',
      image: 'twofold',
      command: ['python3', '-c', program, '$(POD_IP)'],
      env: [{ name: 'SIDE', value: 'old' }],
      canary,
    },
  });
}

const apply = (canary) => kubectlOk(instance, ['apply', '-f', '-'], app(canary));
const withWeight = (weight) => ({ weight, env: [{ name: 'SIDE', value: 'new' }] });

after(async () => {
  if (!needed.skip) await kubectlOk(instance, ['delete', 'app', 'twofold', '-n', instance.project, '--ignore-not-found']);
});

test('people are moved to the canary and back, and it goes without a trace', { ...needed, timeout: 240_000 }, async () => {
  await apply(withWeight(100));
  const { url } = await until(
    'both revisions to be ready',
    async () => {
      const { status } = await resource(instance, 'App', 'twofold');
      return status?.phase === 'Running' && status.canary?.readyReplicas === 1 && status;
    },
    { within: 120_000, every: 200 },
  );
  const answer = async () => (await request(instance, url, { token: instance.token('alice') })).text;
  const becomes = (side) => until(`alice to get the ${side} one`, async () => (await answer()) === side, { within: 30_000, every: 100 });
  await becomes('new');
  for (let time = 0; time < 10; time += 1) assert.equal(await answer(), 'new');
  const shown = row(await kubectlOk(instance, ['get', 'apps', '-n', instance.project, '-o', 'wide']), 'twofold');
  assert.equal(shown['CANARY %'], '100');
  await apply(withWeight(0));
  await becomes('old');
  for (let time = 0; time < 10; time += 1) assert.equal(await answer(), 'old');
  await apply(withWeight(100));
  await becomes('new');
  await apply(undefined);
  await becomes('old');
  await until(
    'the canary to be gone',
    async () => {
      const { stdout } = await kubectl(instance, ['get', 'deployments,services,pods', '-n', instance.project, '-o', 'name']);
      return !stdout.includes('twofold--canary');
    },
    { within: 60_000, every: 200 },
  );
  const { status } = await resource(instance, 'App', 'twofold');
  assert.equal(status.canary, undefined);
});
