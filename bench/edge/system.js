// What stands around the proxies: the workload, an authserver with tokens, and a cluster that knows
// the workload. All of it runs on the load's core and idles while the proxies are measured.

import { spawnSync } from 'node:child_process';
import { createPublicKey, randomBytes } from 'node:crypto';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import https from 'node:https';
import path from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';

import { expectStatus, get } from './http.js';
import { CORE, freePort, ready, run, start } from './processes.js';

export const DOMAIN = 'localhost';
export const ISSUER = 'https://auth.bench.example';
export const AUDIENCE = 'dormouse';
/** Who owns the app. Those who hold the tokens reach it as members of a group. */
const OWNER = 'alice';
const GROUP = 'research';
const TOKENS_PER_PERSON = 50;
const PROJECT = 'alice';
const APP = 'bench';
export const HOST = `${APP}--${PROJECT}.${DOMAIN}`;
const TOKEN_LIFE = '12h';
const CLUSTER_WITHIN = 90_000;
/** Tokens made at a time. */
const AT_ONCE = 4;

/** Everything that the proxies share; `stop` ends it. */
export async function startSystem({ folder, binary, load, tokens }) {
  const started = [];
  const stop = () => Promise.all(started.map((one) => one.stop()));
  try {
    const authserver = await startAuthserver(folder, binary, tokens);
    started.push(authserver.process);
    const cluster = await startCluster(folder, binary, load);
    started.push(cluster.process);
    makeCertificate(folder);
    const pem = path.join(folder, 'jwt.pem');
    const jwks = path.join(folder, 'jwks.json');
    const keys = await get(authserver.port, '/.well-known/jwks.json');
    writeFileSync(jwks, keys.text);
    const [jwk] = JSON.parse(keys.text).keys;
    writeFileSync(pem, createPublicKey({ key: jwk, format: 'jwk' }).export({ type: 'spki', format: 'pem' }));
    return { folder, binary, load, pem, jwks, kid: jwk.kid, authserver, ...cluster, tokens: authserver.tokens, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

async function startAuthserver(folder, binary, count) {
  const [port, admin] = [await freePort(), await freePort()];
  const file = (name) => path.join(folder, name);
  writeFileSync(file('gate-secret'), randomBytes(24).toString('hex'), { mode: 0o600 });
  writeFileSync(file('authserver.toml'), `
listen = "127.0.0.1:${port}"
admin_listen = "127.0.0.1:${admin}"
audit_file = "${file('authserver-audit.jsonl')}"
[authserver]
issuer = "${ISSUER}"
base_domain = "bench.example"
database = "${file('authserver.db')}"
client_secret_file = "${file('gate-secret')}"
`);
  const args = ['authserver', '--config', file('authserver.toml')];
  const process = start('the authserver', CORE.load, binary, args, { log: file('authserver.log') });
  await ready(process, () => expectStatus(admin, '/readyz', 200));
  const where = ['--database', file('authserver.db')];
  const tokens = [];
  const person = async (number) => {
    const name = `person-${number}`;
    const who = ['--name', name, '--email', `${name}@example.com`, '--group', GROUP];
    const added = spawnSync(binary, ['auth', 'user', 'add', ...where, ...who], { input: randomBytes(12).toString('hex') });
    if (added.status !== 0) throw new Error(`dormouse auth user add: ${added.stderr}`);
    const order = ['auth', 'token', ...where, '--issuer', ISSUER, '--user', name, '--expires-in', TOKEN_LIFE];
    for (let made = 0; made < Math.min(TOKENS_PER_PERSON, count); made += 1) {
      tokens.push((await run('dormouse auth token', binary, order, { within: 30_000 })).trim());
    }
  };
  const people = Array.from({ length: Math.ceil(count / TOKENS_PER_PERSON) }, (_, number) => number);
  const makeSome = async () => {
    while (people.length > 0) await person(people.pop());
  };
  await Promise.all(Array.from({ length: AT_ONCE }, makeSome));
  return { process, port, tokens: tokens.slice(0, count), secretFile: file('gate-secret') };
}

/** `dormouse dev` for its cluster: an API server, a node, and the app whose pod is the upstream. */
async function startCluster(folder, binary, load) {
  const [httpsPort, sshPort] = [await freePort(), await freePort()];
  const dataDir = path.join(folder, 'dev');
  const readyFile = path.join(folder, 'ready.json');
  const args = ['dev', '--data-dir', dataDir, '--https-port', String(httpsPort), '--ssh-port', String(sshPort)];
  args.push('--ready-file', readyFile, '--idle-after', '24h');
  const process = start('dormouse dev', CORE.load, binary, args, { log: path.join(folder, 'dev.log') });
  await ready(process, () => readFileSync(readyFile));
  const kubeconfig = JSON.parse(readFileSync(readyFile, 'utf8')).kubeconfig;
  const api = kubernetes(kubeconfig);
  const app = {
    apiVersion: 'dormouse.dev/v1alpha1',
    kind: 'App',
    metadata: { name: APP, namespace: PROJECT },
    spec: {
      owner: OWNER,
      sharing: { groups: [GROUP] },
      image: 'dormouse',
      command: [load, 'upstream', '--listen', '$(POD_IP):8080'],
      port: 8080,
      // So that each WebSocket message is looked into.
      protocol: 'Jupyter',
      probe: { path: '/1k' },
    },
  };
  const made = await api('POST', `/apis/dormouse.dev/v1alpha1/namespaces/${PROJECT}/apps`, app);
  if (made.status !== 201) throw new Error(`the app cannot be made: ${made.text}`);
  const slices = `/apis/discovery.k8s.io/v1/namespaces/${PROJECT}/endpointslices`;
  const deadline = Date.now() + CLUSTER_WITHIN;
  for (;;) {
    const { items = [] } = JSON.parse((await api('GET', slices)).text);
    const mine = items.filter(({ metadata }) => metadata.labels?.['kubernetes.io/service-name'] === APP);
    const endpoints = mine.flatMap((slice) => slice.endpoints ?? []);
    const address = endpoints.find(({ conditions }) => conditions?.ready)?.addresses[0];
    if (address) return { process, kubeconfig, upstream: `${address}:8080` };
    if (process.end || Date.now() > deadline) {
      throw new Error(`the app's pod does not get ready: ${JSON.stringify(items)}\n${process.tail()}`);
    }
    await pause(200);
  }
}

/** Calls to the API server that a kubeconfig names. */
function kubernetes(file) {
  const text = readFileSync(file, 'utf8');
  const field = (name) => new RegExp(`^\\s*(?:- )?${name}:\\s*"?([^"\\n]+?)"?\\s*$`, 'm').exec(text)?.[1];
  const bytes = (name) => {
    const inline = field(`${name}-data`);
    if (inline) return Buffer.from(inline, 'base64');
    const named = field(name);
    return named && readFileSync(path.resolve(path.dirname(file), named));
  };
  const tls = { ca: bytes('certificate-authority'), cert: bytes('client-certificate'), key: bytes('client-key') };
  const token = field('token');
  return (method, pathname, body) =>
    new Promise((resolve, reject) => {
      const headers = { accept: 'application/json', 'content-type': 'application/json' };
      if (token) headers.authorization = `Bearer ${token}`;
      const url = new URL(pathname, field('server'));
      const sent = https.request(url, { ...tls, method, headers, agent: false }, (response) => {
        const chunks = [];
        response.on('data', (chunk) => chunks.push(chunk));
        response.on('error', reject);
        response.on('end', () => resolve({ status: response.statusCode, text: Buffer.concat(chunks).toString() }));
      });
      sent.on('error', reject);
      sent.end(body && JSON.stringify(body));
    });
}

/** One certificate for every server that speaks TLS here. */
function makeCertificate(folder) {
  const [certificate, key] = ['tls.crt', 'tls.key'].map((name) => path.join(folder, name));
  const args = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2'];
  args.push('-subj', '/CN=bench', '-addext', `subjectAltName=DNS:${HOST}`, '-keyout', key, '-out', certificate);
  args.push('-addext', 'basicConstraints=critical,CA:FALSE');
  const made = spawnSync('openssl', args, { encoding: 'utf8' });
  if (made.status !== 0 || !existsSync(certificate)) throw new Error(`openssl req: ${made.stderr}`);
}
