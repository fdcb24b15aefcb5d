// npm oidc-provider as the tests want it. One JSON object on standard input configures it; on standard output it says
// where it listens, and then tells what happens, one JSON object a line.
import { readFileSync } from 'node:fs'
import http from 'node:http'
import https from 'node:https'

import { Provider } from 'oidc-provider'

const options = JSON.parse(readFileSync(0, 'utf8'))

const tell = (event) => process.stdout.write(`${JSON.stringify(event)}\n`)

const configuration = {
  clients: options.clients,
  // Made by the tests: Node 20 can hang for ever where a key that it generated is exported as a JWK, if its garbage
  // collector runs in between (1 of 150 starts of this server did).
  jwks: options.jwks,
  // By default it calls nobody on loopback, where the tests' receivers of logout tokens are.
  fetch: (url, { dispatcher, ...rest }) => globalThis.fetch(url, rest),
  cookies: { keys: ['a key for cookies of the tests'] },
  clientAuthMethods: [
    'none',
    'client_secret_basic',
    'client_secret_post',
    'client_secret_jwt',
    'private_key_jwt',
    'tls_client_auth'
  ],
  pkce: { required: () => true },
  rotateRefreshToken: true,
  ttl: {
    AccessToken: options.accessTokenSeconds,
    ClientCredentials: options.accessTokenSeconds,
    RefreshToken: 14 * 86400,
    IdToken: 3600,
    Grant: 14 * 86400,
    Interaction: 3600,
    Session: 14 * 86400,
    DeviceCode: 600
  },
  claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['name'] },
  scopes: ['openid', 'offline_access', 'read', 'write'],
  findAccount: (_ctx, id) => ({
    accountId: id,
    claims: () => ({ sub: id, name: id, email: `${id}@corp.example`, email_verified: true })
  }),
  features: {
    devInteractions: { enabled: true },
    backchannelLogout: { enabled: true },
    clientCredentials: { enabled: true },
    deviceFlow: { enabled: true },
    introspection: { enabled: true },
    jwtResponseModes: { enabled: true },
    requestObjects: {
      enabled: true,
      requireSignedRequestObject: Boolean(options.requireSignedRequests)
    },
    revocation: { enabled: true },
    rpInitiatedLogout: { enabled: true },
    userinfo: { enabled: true },
    pushedAuthorizationRequests: {
      enabled: true,
      requirePushedAuthorizationRequests: Boolean(options.requirePushedAuthorization)
    },
    dPoP: {
      enabled: true,
      nonceSecret: Buffer.alloc(32, 7),
      requireNonce: () => Boolean(options.requireDpopNonce)
    },
    mTLS: {
      enabled: true,
      tlsClientAuth: true,
      getCertificate: (ctx) => {
        const peer = ctx.socket.getPeerX509Certificate?.()
        return peer === undefined ? undefined : peer.toString()
      },
      certificateAuthorized: (ctx) => ctx.socket.authorized,
      certificateSubjectMatches: (ctx, _property, expected) =>
        ctx.socket.getPeerX509Certificate()?.subject === expected
    },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => undefined,
      useGrantedResource: () => true,
      getResourceServerInfo: (_ctx, resource) => ({
        audience: resource,
        scope: 'read write',
        accessTokenTTL: options.accessTokenSeconds,
        accessTokenFormat: 'jwt',
        jwt: { sign: { alg: 'ES256' } }
      })
    }
  }
}

const listener = options.tls
  ? https.createServer({
    cert: readFileSync(options.tls.certificate),
    key: readFileSync(options.tls.key),
    ca: readFileSync(options.tls.ca),
    requestCert: true,
    rejectUnauthorized: false
  })
  : http.createServer()

listener.listen(0, '127.0.0.1', () => {
  const url = `${options.tls ? 'https' : 'http'}://127.0.0.1:${listener.address().port}`
  const provider = new Provider(url, configuration)
  provider.on('grant.success', (ctx) => tell({ event: 'grant', type: ctx.oidc.params.grant_type }))
  provider.on('grant.error', (ctx, error) =>
    tell({ event: 'refused', type: ctx.oidc.params?.grant_type, error: error.error, detail: error.error_detail }))
  provider.on('grant.revoked', () => tell({ event: 'revoked' }))
  provider.on('backchannel.success', () => tell({ event: 'backchannel' }))
  provider.on('backchannel.error', (_ctx, error) => tell({ event: 'backchannel refused', error: `${error.message}: ${error.cause}` }))
  provider.on('server_error', (_ctx, error) => tell({ event: 'fault', error: error.stack }))
  listener.on('request', provider.callback())
  tell({ event: 'listening', url })
})
