// Two development systems on one cluster: what is deployed there is left alone, and of one scope there is one.

import assert from 'node:assert/strict';
import { after, test } from 'node:test';

import { request } from '../support/client.js';
import { create, getJson, podsOf, resource } from '../support/cluster.js';
import { run } from '../support/command.js';
import { until } from '../support/deadline.js';
import { Instance, binary, environment, foreignKubeconfig, freePort, ownInstance, temporaryFolder } from '../support/instance.js';

const skip = foreignKubeconfig && 'it needs a cluster of its own';
const host = skip ? undefined : await ownInstance('scope-host');
const flags = skip ? [] : ['--kubeconfig', host.ready.kubeconfig, '--scope', 'guest'];
const GROUP = '/apis/dormouse.dev/v1alpha1';

/** What the system that was there first has made, each with uid, version and content. */
async function deployed() {
  const paths = ['/apis/apps/v1/namespaces/alice/statefulsets', '/apis/apps/v1/namespaces/alice/deployments'];
  paths.push('/api/v1/namespaces/alice/services', '/api/v1/namespaces/alice/secrets');
  paths.push(`${GROUP}/projects/alice`, '/api/v1/namespaces/alice');
  paths.push('/apis/apiextensions.k8s.io/v1/customresourcedefinitions/workspaces.dormouse.dev');
  const all = await Promise.all(paths.map((one) => getJson(host, one)));
  return all.flatMap((one) => one.items ?? [one]);
}

test('a development system of another scope leaves what is deployed alone', { skip, timeout: 300_000 }, async (t) => {
  const before = await deployed();
  const place = await Instance.newPlace('scope-guest');
  const guest = new Instance({ name: 'scope-guest', flags, mark: 'scope-guest', ...place });
  await guest.start();
  after(async () => {
    await guest.stop();
    guest.remove();
  });
  assert.deepEqual(await deployed(), before);
  const { project } = guest.workload('echo');
  assert.equal(project, 'alice-guest');
  assert.equal((await getJson(host, `${GROUP}/projects/${project}`)).metadata.labels['dormouse.dev/scope'], 'guest');

  await t.test('each serves its own, and only that', async () => {
    const status = async (instance, url) => (await request(instance, url, { token: instance.token('alice'), within: 65_000 })).status;
    await until('both echos to answer', async () => {
      const both = [await status(host, host.url('echo')), await status(guest, guest.url('echo'))];
      return both.every((one) => one === 200);
    });
    assert.equal(await status(host, host.url('echo').replace('--alice', `--${project}`)), 404);
    assert.equal(await status(guest, guest.url('echo').replace(`--${project}`, '--alice')), 404);
    const names = async (instance) => {
      const list = await request(instance, `${instance.ready.portal}api/workloads`, { token: instance.token('alice') });
      return [...new Set(list.json().map((one) => one.project))];
    };
    assert.deepEqual([await names(host), await names(guest)], [['alice'], [project]]);
  });

  await t.test('what is made in its namespace with kubectl is run by it, on its node', async () => {
    const app = {
      apiVersion: 'dormouse.dev/v1alpha1',
      kind: 'App',
      metadata: { name: 'more', namespace: project },
      spec: { owner: 'alice', image: 'dormouse', command: ['dormouse', 'echo', '--listen', '$(POD_IP):8080'] },
    };
    await create(guest, app);
    await until('it to run', async () => (await resource(guest, 'App', 'more')).status?.phase === 'Running', { within: 90_000 });
    const [pod] = await podsOf(guest, app);
    assert.equal(pod.spec.nodeName, 'dormouse-guest');
    assert.equal(pod.metadata.labels['dormouse.dev/scope'], 'guest');
  });

  await t.test('a second one of the scope says who is there, and ends', async () => {
    const [https, ssh] = [await freePort(), await freePort()];
    const args = ['dev', '--data-dir', temporaryFolder('scope-rival'), '--https-port', String(https), '--ssh-port', String(ssh)];
    const { code, stderr } = await run(binary, [...args, ...flags], { env: environment(), within: 60_000 });
    assert.notEqual(code, 0);
    assert.match(stderr, /another controller of the scope `guest` is alive: .* holds the Lease default\/dormouse-controller-guest since/);
    assert.ok(stderr.includes(guest.dataDir), 'it says which one');
    assert.match(stderr, /--scope NAME/);
  });
  assert.deepEqual(await deployed(), before);
});

test('a Project of another scope is not taken over', { skip, timeout: 120_000 }, async () => {
  const project = {
    apiVersion: 'dormouse.dev/v1alpha1',
    kind: 'Project',
    metadata: { name: 'alice-other' },
    spec: { members: [] },
  };
  await create(host, project);
  const before = await getJson(host, `${GROUP}/projects/alice-other`);
  const args = ['dev', '--data-dir', temporaryFolder('scope-taken'), '--https-port', String(await freePort())];
  args.push('--ssh-port', String(await freePort()), '--kubeconfig', host.ready.kubeconfig, '--scope', 'other');
  const { code, stderr } = await run(binary, args, { env: environment(), within: 90_000 });
  assert.notEqual(code, 0);
  assert.match(stderr, /the Project alice-other is of the scope `default` and not of `other`, and is left as it is/);
  const { spec, metadata } = await getJson(host, `${GROUP}/projects/alice-other`);
  assert.deepEqual([spec, metadata.uid, metadata.labels], [before.spec, before.metadata.uid, before.metadata.labels]);
});
