// kubectl, as an operator uses it.

import assert from 'node:assert/strict';
import { after, test } from 'node:test';

import { request } from '../support/client.js';
import { resource } from '../support/cluster.js';
import { until } from '../support/deadline.js';
import { sharedInstance } from '../support/instance.js';
import { kubectl, kubectlOk, needsKubectl, row } from '../support/kubectl.js';

const instance = await sharedInstance();
const { namespace } = (await resource(instance, 'App', 'echo')).metadata;
const ok = (...args) => kubectlOk(instance, args);

test('get shows state, last activity and URL', needsKubectl, async () => {
  await request(instance, instance.url('echo'), { token: instance.token('alice'), method: 'POST' });
  const seen = await until('echo running, with its last activity', async () => {
    const apps = row(await ok('get', 'apps', '-n', namespace), 'echo');
    const activity = Object.entries(apps ?? {}).find(([title]) => title.includes('ACTIV'))?.[1];
    return Object.values(apps ?? {}).includes('Running') && activity && !activity.startsWith('<') && apps;
  });
  assert.ok(Object.values(seen).some((cell) => cell.startsWith(`https://${new URL(instance.url('echo')).hostname}`)));
  if (instance.workload('lab')) {
    const lab = row(await ok('get', 'workspaces', '-n', namespace), 'lab');
    assert.ok(Object.values(lab).some((cell) => cell.startsWith('https://')), JSON.stringify(lab));
  }
  const both = await ok('get', 'workspaces,apps', '-A');
  assert.match(both, /echo/);
});

test('describe tells conditions and spec', needsKubectl, async () => {
  const text = await ok('describe', 'app', 'echo', '-n', namespace);
  assert.match(text, /^Name:\s+echo$/m);
  assert.match(text, /Conditions:/);
  assert.match(text, /Phase:\s+Running/);
});

const app = (name, spec = {}) =>
  JSON.stringify({
    apiVersion: 'dormouse.dev/v1alpha1',
    kind: 'App',
    metadata: { name, namespace },
    spec,
  });

/** An app like echo, under another name, that says when it starts. */
async function copyOfEcho(name) {
  const { spec } = await resource(instance, 'App', 'echo');
  spec.command = ['sh', '-c', `echo ${name} starts; exec ${spec.command.join(' ')}`];
  return kubectlOk(instance, ['apply', '-f', '-'], app(name, spec));
}

test('apply makes an app, scale stops and starts it, logs are its own, delete leaves nothing', { ...needsKubectl, timeout: 180_000 }, async () => {
  const name = 'second-echo';
  after(() => kubectl(instance, ['delete', 'app', name, '-n', namespace, '--ignore-not-found']));
  assert.match(await copyOfEcho(name), /second-echo created/);
  assert.match(await copyOfEcho(name), /second-echo (unchanged|configured)/);

  const { status } = await until('its URL', async () => {
    const found = await resource(instance, 'App', name);
    return found.status?.url && found;
  });
  const answers = async () => {
    const { status: code } = await request(instance, status.url, { token: instance.token('alice') });
    return code;
  };
  await until('it to answer', async () => (await answers()) === 200, { within: 60_000 });

  const deployments = await ok('get', 'deployments', '-n', namespace);
  assert.match(deployments, /second-echo/);
  await until('what it said', async () => (await ok('logs', `deployment/${name}`, '-n', namespace)).includes(`${name} starts\n`));

  assert.match(await ok('scale', 'app', name, '-n', namespace, '--replicas=0'), /scaled/);
  const phase = async () => (await resource(instance, 'App', name)).status?.phase;
  await until('it to be Stopped', async () => (await phase()) === 'Stopped');
  await until('its pods to be gone', async () => !(await ok('get', 'pods', '-n', namespace)).includes(`${name}-`));
  assert.match(await ok('scale', 'app', name, '-n', namespace, '--replicas=1'), /scaled/);
  await until('it to run again', async () => (await phase()) === 'Running', { within: 60_000 });
  await until('it to answer again', async () => (await answers()) === 200);

  assert.match(await ok('delete', 'app', name, '-n', namespace), /deleted/);
  await until('what it owned to be gone', async () => {
    const left = await ok('get', 'deployments,services,pods,endpointslices', '-n', namespace);
    return !left.includes(`${name}-`) && !left.includes(`/${name} `);
  });
  await until('its host to be nobody\'s', async () => (await answers()) === 404);
});

test('an invalid resource is refused in one line that names the field', needsKubectl, async () => {
  const { spec } = await resource(instance, 'App', 'echo');
  const wrong = [
    ['a field that is not there', app('wrong', { ...spec, prot: 8080 }), /"spec\.prot"/],
    ['a port out of range', app('wrong', { ...spec, port: 70_000 }), /spec\.port: .*70000/],
    ['a name that makes no host', app('wrong--name', spec), /metadata\.name must be/],
  ];
  for (const [what, input, pattern] of wrong) {
    const { code, stderr } = await kubectl(instance, ['apply', '-f', '-'], input);
    assert.notEqual(code, 0, `${what} was taken`);
    assert.match(stderr, pattern, what);
    assert.equal(stderr.trim().split('\n').length, 1, `${what}: ${stderr}`);
  }
  await assert.rejects(resource(instance, 'App', 'wrong'), /no App wrong/);
});

test('a resource with a value of the wrong type is refused, with the field\'s name', needsKubectl, async () => {
  const { spec } = await resource(instance, 'App', 'echo');
  const { code, stderr } = await kubectl(instance, ['apply', '-f', '-'], app('wrong', { ...spec, port: 'many' }));
  assert.notEqual(code, 0);
  assert.match(stderr, /spec\.port/);
});
