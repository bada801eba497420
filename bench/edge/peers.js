// How each program is set up that stands beside ours: one worker, keep-alive on both sides, its
// access log off, and whatever it needs to pass WebSockets on.

import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import { expectStatus } from './http.js';
import { CORE, freePort, ready, start } from './processes.js';
import { AUDIENCE, HOST, ISSUER } from './system.js';

const repository = fileURLToPath(new URL('../..', import.meta.url));

/** Upstream connections that are kept open: as many as clients. */
const KEEP = 64;

/** Where a program is, or undefined. Debian keeps servers in /usr/sbin. */
function find(program) {
  const places = [...process.env.PATH.split(':'), '/usr/sbin', '/usr/local/sbin'];
  return places.map((place) => path.join(place, program)).find(existsSync);
}

function envoyBinary() {
  const lib = path.join(repository, '.dev/peers/envoy/lib');
  if (!existsSync(lib)) return undefined;
  // The package's own command is a Python program that runs this one.
  const found = readdirSync(lib).map((python) => path.join(lib, python, 'site-packages/envoy/_bin/envoy'));
  return found.find(existsSync);
}

function present(file) {
  return existsSync(file) ? file : undefined;
}

export const programs = {
  nginx: find('nginx'),
  haproxy: find('haproxy'),
  envoy: envoyBinary(),
  caddy: present(path.join(repository, '.dev/peers/caddy/bin/caddy')),
  chp: present(path.join(repository, 'e2e/node_modules/configurable-http-proxy/bin/configurable-http-proxy')),
  wrk: find('wrk'),
  strace: find('strace'),
};

/** Versions as the programs say them. */
export function versions() {
  const first = (command, args, pattern) => {
    const { stdout, stderr } = spawnSync(command, args, { encoding: 'utf8' });
    return pattern.exec(`${stdout}${stderr}`)?.[1] ?? 'unknown';
  };
  const said = {
    nginx: programs.nginx && first(programs.nginx, ['-v'], /nginx\/(\S+)/),
    HAProxy: programs.haproxy && first(programs.haproxy, ['-v'], /version (\S+)/),
    Envoy: programs.envoy && first(programs.envoy, ['--version'], /\/(\d+\.\d+\.\d+)\//),
    Caddy: programs.caddy && first(programs.caddy, ['version'], /v(\S+)/),
    'configurable-http-proxy': programs.chp && first(process.execPath, [programs.chp, '--version'], /(\d\S*)/),
  };
  return Object.fromEntries(Object.entries(said).filter(([, version]) => version));
}

/** Makes a folder of its own, writes the settings there, and starts it. */
async function startPeer(system, name, { command, args, file, text, port, tls, env, processes = [] }) {
  const folder = path.join(system.folder, `${name}-${port}`);
  mkdirSync(folder, { recursive: true });
  const settings = path.join(folder, file ?? 'none');
  if (text) writeFileSync(settings, text(folder));
  const log = path.join(folder, 'log');
  const process = start(name, CORE.proxy, command, args(settings, folder), { log, env });
  const peer = { port, processes: [process, ...processes] };
  peer.stop = () => Promise.all(peer.processes.map((one) => one.stop()));
  try {
    const headers = { host: HOST, authorization: `Bearer ${system.tokens[0]}` };
    await ready(process, () => expectStatus(port, '/1k', 200, { headers, tls: tls && HOST }));
  } catch (error) {
    await peer.stop();
    throw error;
  }
  return peer;
}

function nginxSettings(system, { port, http = '', server = '', location = '', tls }) {
  // Started by root, it would give its worker to somebody who may not enter our folder.
  const user = process.getuid() === 0 ? 'user root;' : '';
  return (folder) => `
${user}
worker_processes 1;
daemon off;
pid ${folder}/pid;
error_log ${folder}/error.log warn;
events { worker_connections 16384; }
worker_rlimit_nofile 65536;
http {
  access_log off;
  keepalive_requests 1000000000;
  client_body_temp_path ${folder}/body;
  proxy_temp_path ${folder}/proxy;
  fastcgi_temp_path ${folder}/fastcgi;
  uwsgi_temp_path ${folder}/uwsgi;
  scgi_temp_path ${folder}/scgi;
  upstream workload { server ${system.upstream}; keepalive ${KEEP}; keepalive_requests 1000000000; }
  map $http_upgrade $connection_field { default upgrade; '' ''; }
  ${http}
  server {
    listen 127.0.0.1:${port}${tls ? ' ssl' : ''};
    ${tls ? `ssl_certificate ${system.folder}/tls.crt; ssl_certificate_key ${system.folder}/tls.key;` : ''}
    ${server}
    location / {
      ${location}
      proxy_pass http://workload;
      proxy_http_version 1.1;
      proxy_set_header Host $host;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_field;
      proxy_read_timeout 1h;
      # Whole files are not written to disk first.
      proxy_max_temp_file_size 0;
    }
  }
}
`;
}

async function nginx(system, extra = {}) {
  const port = await freePort();
  return startPeer(system, 'nginx', {
    command: programs.nginx,
    args: (settings, folder) => ['-e', path.join(folder, 'error.log'), '-c', settings],
    file: 'nginx.conf',
    text: nginxSettings(system, { port, ...extra }),
    port,
    tls: extra.tls,
    processes: extra.processes,
  });
}

/** nginx that asks a service whether the token is good, and believes an answer for so long. */
async function nginxAuthRequest(system, cached) {
  const service = await verifier(system);
  const http = `
    upstream verifier { server 127.0.0.1:${service.port}; keepalive ${KEEP}; keepalive_requests 1000000000; }
    ${cached ? `proxy_cache_path ${system.folder}/auth-cache-${service.port} keys_zone=auth:16m max_size=64m;` : ''}`;
  const server = `
    location = /_verify {
      internal;
      proxy_pass http://verifier/;
      proxy_http_version 1.1;
      proxy_set_header Connection '';
      proxy_pass_request_body off;
      proxy_set_header Content-Length '';
      ${cached ? 'proxy_cache auth; proxy_cache_key $http_authorization; proxy_cache_valid 200 60s;' : ''}
    }`;
  const location = 'auth_request /_verify;';
  try {
    return await nginx(system, { http, server, location, processes: service.processes });
  } catch (error) {
    await service.stop();
    throw error;
  }
}

/** Refuses whatever does not carry a token that is ours, good and not expired. */
function haproxyRules(system) {
  return `
  http-request set-var(txn.bearer) http_auth_bearer
  http-request set-var(txn.now) date()
  http-request deny deny_status 401 unless { var(txn.bearer) -m found }
  http-request deny deny_status 401 unless { var(txn.bearer),jwt_header_query('$.alg') -m str RS256 }
  http-request deny deny_status 401 unless { var(txn.bearer),jwt_payload_query('$.iss') -m str ${ISSUER} }
  http-request deny deny_status 401 unless { var(txn.bearer),jwt_payload_query('$.aud') -m str ${AUDIENCE} }
  http-request deny deny_status 401 if { var(txn.bearer),jwt_payload_query('$.exp','int'),sub(txn.now) -m int lt 0 }
  http-request deny deny_status 401 unless { var(txn.bearer),jwt_verify('RS256','${system.pem}') 1 }`;
}

function haproxySettings(port, body) {
  return () => `
global
  nbthread 1
  maxconn 8000
  tune.bufsize 16384
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout tunnel 1h
frontend edge
  bind 127.0.0.1:${port}
${body}
`;
}

async function haproxy(system, body) {
  const port = await freePort();
  return startPeer(system, 'haproxy', {
    command: programs.haproxy,
    args: (settings) => ['-f', settings],
    file: 'haproxy.cfg',
    text: haproxySettings(port, body),
    port,
  });
}

function haproxyProxy(system, rules = '') {
  const backend = `backend workload\n  http-reuse always\n  server one ${system.upstream}`;
  return haproxy(system, `${rules}\n  default_backend workload\n${backend}`);
}

/** The service that nginx and Caddy ask: HAProxy, which verifies and answers by itself. */
function verifier(system) {
  return haproxy(system, `${haproxyRules(system)}\n  http-request return status 200`);
}

async function envoy(system, filter) {
  const [port, id] = [await freePort(), Math.floor(Math.random() * 1e6)];
  const [address, upstreamPort] = system.upstream.split(':');
  const router = {
    name: 'envoy.filters.http.router',
    typed_config: { '@type': 'type.googleapis.com/envoy.extensions.filters.http.router.v3.Router' },
  };
  const manager = {
    '@type': 'type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager',
    stat_prefix: 'edge',
    stream_idle_timeout: '0s',
    upgrade_configs: [{ upgrade_type: 'websocket' }],
    route_config: {
      virtual_hosts: [{
        name: 'all',
        domains: ['*'],
        routes: [{ match: { prefix: '/' }, route: { cluster: 'workload', timeout: '0s' } }],
      }],
    },
    http_filters: [...(filter ? [filter] : []), router],
  };
  const settings = {
    static_resources: {
      listeners: [{
        address: { socket_address: { address: '127.0.0.1', port_value: port } },
        enable_reuse_port: false,
        filter_chains: [{ filters: [{ name: 'envoy.filters.network.http_connection_manager', typed_config: manager }] }],
      }],
      clusters: [{
        name: 'workload',
        type: 'STATIC',
        connect_timeout: '5s',
        circuit_breakers: { thresholds: [{ max_connections: 20000, max_pending_requests: 20000, max_requests: 20000 }] },
        load_assignment: {
          cluster_name: 'workload',
          endpoints: [{
            lb_endpoints: [{
              endpoint: { address: { socket_address: { address, port_value: Number(upstreamPort) } } },
            }],
          }],
        },
      }],
    },
  };
  return startPeer(system, 'envoy', {
    command: programs.envoy,
    args: (file) => ['-c', file, '--concurrency', '1', '--base-id', String(id), '-l', 'warning'],
    file: 'envoy.json',
    text: () => JSON.stringify(settings),
    port,
  });
}

function jwtFilter(system, cached) {
  return {
    name: 'envoy.filters.http.jwt_authn',
    typed_config: {
      '@type': 'type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication',
      providers: {
        ours: {
          issuer: ISSUER,
          audiences: [AUDIENCE],
          local_jwks: { filename: system.jwks },
          ...(cached ? { jwt_cache_config: { jwt_cache_size: 2000, jwt_max_token_size: 8192 } } : {}),
        },
      },
      rules: [{ match: { prefix: '/' }, requires: { provider_name: 'ours' } }],
    },
  };
}

async function caddy(system, auth) {
  const [port, service] = [await freePort(), auth && (await verifier(system))];
  const check = service ? `forward_auth 127.0.0.1:${service.port} {\n    uri /\n  }` : '';
  return startPeer(system, 'caddy', {
    command: programs.caddy,
    args: (settings) => ['run', '--adapter', 'caddyfile', '--config', settings],
    file: 'Caddyfile',
    text: (folder) => `{
  admin off
  auto_https off
  persist_config off
  storage file_system ${folder}/storage
  log {
    level WARN
  }
}
http://:${port} {
  bind 127.0.0.1
  ${check}
  reverse_proxy ${system.upstream} {
    transport http {
      keepalive_idle_conns_per_host ${KEEP}
    }
  }
}
`,
    port,
    env: { GOMAXPROCS: '1', HOME: system.folder },
    processes: service?.processes,
  }).catch(async (error) => {
    await service?.stop();
    throw error;
  });
}

async function configurableHttpProxy(system) {
  const [port, api] = [await freePort(), await freePort()];
  const args = ['--ip', '127.0.0.1', '--port', String(port), '--api-ip', '127.0.0.1', '--api-port', String(api)];
  args.push('--default-target', `http://${system.upstream}`, '--log-level', 'error');
  return startPeer(system, 'configurable-http-proxy', {
    command: process.execPath,
    args: () => [programs.chp, ...args],
    port,
    env: { CONFIGPROXY_AUTH_TOKEN: 'bench', NODE_ENV: 'production' },
  });
}

/** `id`, the row's title, which program it needs, whether it refuses bad tokens, and how it is started. */
export const peers = [
  { id: 'nginx', title: 'nginx, no auth', needs: ['nginx'], start: (system) => nginx(system), streams: true, calls: true },
  {
    id: 'nginx-cached',
    title: 'nginx, auth_request, answer cached 60 s',
    needs: ['nginx', 'haproxy'],
    verifies: true,
    many: true,
    start: (system) => nginxAuthRequest(system, true),
  },
  {
    id: 'nginx-auth',
    title: 'nginx, auth_request, RS256 each time',
    needs: ['nginx', 'haproxy'],
    verifies: true,
    start: (system) => nginxAuthRequest(system, false),
  },
  { id: 'haproxy', title: 'HAProxy, no auth', needs: ['haproxy'], start: (system) => haproxyProxy(system), streams: true },
  {
    id: 'haproxy-jwt',
    title: 'HAProxy, jwt_verify',
    needs: ['haproxy'],
    verifies: true,
    many: true,
    start: (system) => haproxyProxy(system, haproxyRules(system)),
  },
  { id: 'envoy', title: 'Envoy, no auth', needs: ['envoy'], start: (system) => envoy(system), streams: true },
  {
    id: 'envoy-jwt',
    title: 'Envoy, jwt_authn',
    needs: ['envoy'],
    verifies: true,
    start: (system) => envoy(system, jwtFilter(system, false)),
  },
  {
    id: 'envoy-cached',
    title: 'Envoy, jwt_authn with its cache',
    needs: ['envoy'],
    verifies: true,
    many: true,
    start: (system) => envoy(system, jwtFilter(system, true)),
  },
  { id: 'caddy', title: 'Caddy, no auth', needs: ['caddy'], start: (system) => caddy(system, false), streams: true, requests: false },
  {
    id: 'caddy-auth',
    title: 'Caddy, forward_auth, RS256 each time',
    needs: ['caddy', 'haproxy'],
    verifies: true,
    start: (system) => caddy(system, true),
  },
  {
    id: 'chp',
    title: 'configurable-http-proxy, no auth',
    needs: ['chp'],
    start: (system) => configurableHttpProxy(system),
    streams: true,
  },
  {
    id: 'nginx-tls',
    title: 'nginx, no auth, over TLS',
    needs: ['nginx'],
    start: (system) => nginx(system, { tls: true }),
    streams: true,
    tls: true,
  },
];
