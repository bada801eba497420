// A person who was here before the company's provider, linked to it by an operator's command.

import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { readFileSync, rmSync } from 'node:fs';
import { after, before, test } from 'node:test';

import { Visitor, needsUpstream, startAuthserver, startUpstream } from '../support/authserver.js';
import { run } from '../support/command.js';
import { binary } from '../support/instance.js';

const callback = 'http://127.0.0.1:9/callback';
const subject = '00u1a2b3c4';
const password = randomBytes(12).toString('hex');
let [upstream, server] = [];

before(async () => {
  if (needsUpstream.skip) return;
  upstream = await startUpstream('company');
  // At the company she has the name of somebody whom we know.
  const claims = { preferred_username: 'carol', email: 'carol@example.com', email_verified: true, groups: ['research'] };
  await upstream.set(subject, claims);
  server = await startAuthserver('federation', [{ id: 'company', name: 'Example & Co', issuer: upstream.issuer }]);
  await ok(['client', 'create', '--id', 'tool', '--public', '--redirect-uri', callback]);
  await ok(['user', 'add', '--name', 'carol', '--group', 'ml'], password);
  await ok(['user', 'add', '--name', 'dave'], password);
});
after(async () => {
  await server?.stop();
  await upstream?.stop();
  if (server) rmSync(server.folder, { recursive: true, force: true });
});

/** `dormouse auth ...` beside the running server. */
function auth(args, input) {
  return run(binary, ['auth', ...args, '--config', server.settings], { input });
}

async function ok(args, input) {
  const { code, stdout, stderr } = await auth(args, input);
  assert.equal(code, 0, `dormouse auth ${args.join(' ')}: ${stderr}`);
  return stdout;
}

function link(name, { provider = upstream.issuer, as = subject } = {}) {
  return auth(['user', 'link-upstream', '--name', name, '--provider', provider, '--subject', as]);
}

/** The claims of the ID token that a program gets for whoever signs in by `how(page)`. */
async function signIn(visitor, how) {
  const verifier = randomBytes(32).toString('base64url');
  const query = new URLSearchParams({
    client_id: 'tool', redirect_uri: callback, response_type: 'code', scope: 'openid profile groups', state: 's',
    code_challenge: createHash('sha256').update(verifier).digest('base64url'), code_challenge_method: 'S256',
  });
  const page = await visitor.open(`/authorize?${query}`);
  assert.equal(page.status, 200, page.text);
  const end = await how(page.text);
  if (!end.url.startsWith(callback)) return end;
  const code = new URL(end.url).searchParams.get('code');
  const form = { grant_type: 'authorization_code', client_id: 'tool', redirect_uri: callback, code, code_verifier: verifier };
  const response = await fetch(`${server.base}/token`, { method: 'POST', body: new URLSearchParams(form) });
  const tokens = await response.json();
  assert.equal(response.status, 200, JSON.stringify(tokens));
  return JSON.parse(Buffer.from(tokens.id_token.split('.')[1], 'base64url').toString());
}

function byPassword(name) {
  const visitor = new Visitor(server);
  return signIn(visitor, (html) => {
    const ticket = /name="ticket" value="([^"]+)"/.exec(html)[1];
    return visitor.open('/sign-in', { form: { ticket, name, password }, stopAt: callback });
  });
}

function byProvider() {
  const visitor = new Visitor(server, subject);
  return signIn(visitor, (html) => {
    assert.match(html, /Sign in with Example &#38; Co/);
    const address = /href="(\/sign-in\/with\/company[^"]*)"/.exec(html)[1].replaceAll('&#38;', '&');
    return visitor.open(address, { stopAt: callback });
  });
}

test('an operator links a person to the provider, and there they sign in as themselves', { ...needsUpstream, timeout: 120_000 }, async () => {
  const local = await byPassword('carol');
  assert.deepEqual([local.preferred_username, local.groups], ['carol', ['ml']]);
  const stranger = await byProvider();
  assert.equal(stranger.status, 409, 'nobody is taken over by their name');
  assert.match(stranger.text, /the name carol belongs to another account here/);

  const linked = await link('carol');
  assert.deepEqual([linked.code, linked.stderr], [0, '']);
  const company = await byProvider();
  assert.equal(company.sub, local.sub, 'the same person');
  const groups = ['ml', 'research'];
  assert.deepEqual([company.preferred_username, company.groups], ['carol', groups], "an operator's groups and the provider's");
  assert.equal((await byPassword('carol')).sub, local.sub, 'and the password goes on working');
  const people = (await ok(['user', 'list', '--json'])).trim().split('\n').map((line) => JSON.parse(line).name);
  assert.deepEqual(people, ['carol', 'dave'], 'nobody was made');
});

test('a link that cannot be is a clear error, and changes nothing', { ...needsUpstream, timeout: 120_000 }, async () => {
  assert.equal((await link('carol')).code, 0, 'linked twice is linked');
  const refused = async (done, text) => {
    const { code, stdout, stderr } = await done;
    assert.notEqual(code, 0);
    assert.equal(stdout, '');
    assert.match(stderr, text);
    assert.equal(stderr.trim().split('\n').length, 1, stderr);
  };
  await refused(link('dave'), new RegExp(`the subject ${subject} of this provider is carol already`));
  await refused(link('erin', { as: 'other' }), /there is no person named erin/);
  await refused(link('dave', { provider: 'company' }), /name the provider by its issuer URL/);
  await refused(link('dave', { as: ' ' }), /a subject is not empty/);
  assert.equal((await byProvider()).preferred_username, 'carol');
});

test('an operator undoes the link: those sessions end, and it is said what is left', { ...needsUpstream, timeout: 120_000 }, async () => {
  await link('carol');
  assert.equal((await byProvider()).preferred_username, 'carol');
  const unlink = (name, ...more) => auth(['user', 'unlink-upstream', '--name', name, '--provider', upstream.issuer, '--subject', subject, ...more]);
  const other = await unlink('dave');
  assert.deepEqual([other.code, other.stdout], [1, '']);
  assert.match(other.stderr, new RegExp(`dave is not the subject ${subject} of this provider`));

  const { code, stdout } = await unlink('carol', '--json');
  assert.equal(code, 0);
  const { ended, locked_out: lockedOut, left } = JSON.parse(stdout);
  assert.ok(ended >= 1, stdout);
  assert.deepEqual([lockedOut, left], [false, { passkeys: 0, password: true, providers: [] }]);
  assert.equal((await byProvider()).status, 409, 'a stranger from now on');
  assert.equal((await byPassword('carol')).preferred_username, 'carol');

  const lines = readFileSync(server.audit, 'utf8').trim().split('\n').map((line) => JSON.parse(line));
  const events = lines.filter(({ who }) => who?.startsWith('operator:')).slice(-2);
  assert.deepEqual(events.map(({ did, to, outcome }) => [did, to, outcome]), [
    ['refused', 'Person dave', 'denied'],
    ['upstream-unlinked', 'Person carol', 'allowed'],
  ]);
  assert.ok(lines.some(({ did }) => did === 'signed-in'), "beside the service's own");
});
