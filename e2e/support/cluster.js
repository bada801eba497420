// Looking at the custom resources through the Kubernetes API, with the kubeconfig of an instance.
// Reads as little of a kubeconfig as tests need: one cluster, one user.

import https from 'node:https';
import { readFileSync } from 'node:fs';
import path from 'node:path';

import { until } from './deadline.js';

const GROUP = '/apis/dormouse.dev/v1alpha1';

function credentials(file) {
  const text = readFileSync(file, 'utf8');
  const field = (name) => new RegExp(`^\\s*(?:- )?${name}:\\s*"?([^"\\n]+?)"?\\s*$`, 'm').exec(text)?.[1];
  const bytes = (name) => {
    const inline = field(`${name}-data`);
    if (inline) return Buffer.from(inline, 'base64');
    const named = field(name);
    return named && readFileSync(path.resolve(path.dirname(file), named));
  };
  return {
    server: field('server'),
    token: field('token'),
    ca: bytes('certificate-authority'),
    cert: bytes('client-certificate'),
    key: bytes('client-key'),
    rejectUnauthorized: field('insecure-skip-tls-verify') !== 'true',
  };
}

function get(instance, pathname) {
  const { server, token, ...tls } = credentials(instance.ready.kubeconfig);
  const headers = { accept: 'application/json', ...(token ? { authorization: `Bearer ${token}` } : {}) };
  return new Promise((resolve, reject) => {
    https
      .get(new URL(pathname, server), { ...tls, headers, agent: false }, resolve)
      .on('error', reject);
  });
}

/** GET of any path of the API server. */
export async function getJson(instance, pathname) {
  const response = await get(instance, pathname);
  const chunks = [];
  for await (const chunk of response) chunks.push(chunk);
  const text = Buffer.concat(chunks).toString();
  if (response.statusCode !== 200) throw new Error(`GET ${pathname}: ${response.statusCode} ${text}`);
  return JSON.parse(text);
}

const plural = { Workspace: 'workspaces', App: 'apps', Project: 'projects' };

/** Sends a custom resource to the API server. */
function send(instance, method, { kind, metadata: { namespace, name } }, object) {
  const { server, token, ...tls } = credentials(instance.ready.kubeconfig);
  const headers = { 'content-type': 'application/json', ...(token ? { authorization: `Bearer ${token}` } : {}) };
  const within = namespace ? `/namespaces/${namespace}` : '';
  const all = `${GROUP}${within}/${plural[kind]}`;
  const url = new URL(method === 'POST' ? all : `${all}/${name}`, server);
  return new Promise((resolve, reject) => {
    const request = https.request(url, { ...tls, method, headers, agent: false }, async (response) => {
      const chunks = [];
      for await (const chunk of response) chunks.push(chunk);
      const text = Buffer.concat(chunks).toString();
      if (response.statusCode < 300) resolve(JSON.parse(text));
      else reject(new Error(`${method} ${url.pathname}: ${response.statusCode} ${text}`));
    });
    request.on('error', reject);
    request.end(object && JSON.stringify(object));
  });
}

/** Makes a workload or a project. */
export function create(instance, object) {
  return send(instance, 'POST', object, object);
}

/** Deletes a workload. */
export function remove(instance, object) {
  return send(instance, 'DELETE', object);
}

/** The custom resource of a workload, found by name in whatever namespace it is in. */
export async function resource(instance, kind, name) {
  const list = await getJson(instance, `${GROUP}/${plural[kind]}`);
  const named = list.items.filter(({ metadata }) => metadata.name === name);
  // Beside another system its workloads have the same names.
  const projects = new Set(instance.ready.workloads.map(({ project }) => project));
  const found = named.find(({ metadata }) => projects.has(metadata.namespace)) ?? named[0];
  if (!found) throw new Error(`the cluster has no ${kind} ${name}`);
  return found;
}

/** Changes the spec of a workload by a JSON merge patch (RFC 7396). */
export async function changeSpec(instance, { kind, name }, spec) {
  const { metadata } = await resource(instance, kind, name);
  const pathname = `${GROUP}/namespaces/${metadata.namespace}/${plural[kind]}/${name}`;
  const { server, token, ...tls } = credentials(instance.ready.kubeconfig);
  const headers = { 'content-type': 'application/merge-patch+json' };
  if (token) headers.authorization = `Bearer ${token}`;
  const response = await new Promise((resolve, reject) => {
    https
      .request(new URL(pathname, server), { ...tls, method: 'PATCH', headers, agent: false }, resolve)
      .on('error', reject)
      .end(JSON.stringify({ spec }));
  });
  const chunks = [];
  for await (const chunk of response) chunks.push(chunk);
  if (response.statusCode !== 200) throw new Error(`PATCH ${pathname}: ${response.statusCode} ${Buffer.concat(chunks)}`);
}

/** Pods of a namespace whose name starts with the workload's. */
export async function podsOf(instance, { metadata: { namespace, name } }) {
  const list = await getJson(instance, `/api/v1/namespaces/${namespace}/pods`);
  return list.items.filter(({ metadata }) => metadata.name.startsWith(`${name}-`));
}

/** Follows the phase of one workload by a watch: `history` is `[{ at, phase }]`, changes only. */
export class PhaseWatch {
  history = [];
  #closed = false;
  #response;
  #failure;

  constructor(instance, kind, name) {
    this.name = name;
    this.#follow(instance, kind, name).catch((error) => {
      this.#failure = error;
    });
  }

  get phase() {
    return this.history.at(-1)?.phase;
  }

  #note(object) {
    const phase = object.status?.phase;
    if (phase && phase !== this.phase) this.history.push({ at: Date.now(), phase });
  }

  async #follow(instance, kind, name) {
    while (!this.#closed) {
      const found = await resource(instance, kind, name);
      this.#note(found);
      const { namespace } = found.metadata;
      const query = `watch=1&fieldSelector=metadata.name%3D${name}`;
      const version = `resourceVersion=${found.metadata.resourceVersion}`;
      const url = `${GROUP}/namespaces/${namespace}/${plural[kind]}?${query}&${version}`;
      this.#response = await get(instance, url);
      this.#response.setEncoding('utf8');
      let pending = '';
      try {
        for await (const chunk of this.#response) {
          pending += chunk;
          const lines = pending.split('\n');
          pending = lines.pop();
          for (const line of lines) {
            const { type, object } = JSON.parse(line);
            if (type === 'ADDED' || type === 'MODIFIED') this.#note(object);
          }
        }
      } catch (error) {
        if (!this.#closed && error.code !== 'ECONNRESET') throw error;
      }
    }
  }

  /** Waits until the phase is that one. */
  async reaches(phase, within) {
    try {
      await until(
        `${this.name} to be ${phase}`,
        () => {
          if (this.#failure) throw this.#failure;
          return this.phase === phase;
        },
        { within, every: 100 },
      );
    } catch (error) {
      throw new Error(`${error.message}; it was ${JSON.stringify(this.history)}`, { cause: error });
    }
  }

  /** Forgets what was before; the present phase stays as the first of the history. */
  restart() {
    this.history = this.history.slice(-1);
  }

  close() {
    this.#closed = true;
    this.#response?.destroy();
  }
}
