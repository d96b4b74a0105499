//! Configurations by context, secrets and ALPN list: made once per worker, so a handshake builds nothing.

use super::secrets::Secrets;
use super::{ClientTls, ServerTls, TlsError};
use dpu_proxy_core::model::{CaSource, CertificateSource, DownstreamTls, UpstreamTls, Workload};
use mesh_model::Identity;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

/// What a configuration was made of: context (by address), whose secrets (`None`: the root scope's), ALPN.
type Key = (usize, Option<Identity>, Option<Vec<String>>);

/// Configurations of one worker.
#[derive(Debug, Default)]
pub struct TlsCache {
    servers: RefCell<HashMap<Key, Cached<DownstreamTls, ServerTls>>>,
    clients: RefCell<HashMap<Key, Cached<UpstreamTls, ClientTls>>>,
}

#[derive(Debug)]
struct Cached<C, T> {
    /// Keeps the context's address from being used again.
    context: Arc<C>,
    stamp: Stamp,
    config: Rc<T>,
}

/// Ids of the secrets; 0: none. Inline PEM never changes, so it has 0 as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp(u64, u64);

impl TlsCache {
    /// The configuration of a downstream context.
    pub fn server(
        &self,
        context: &Arc<DownstreamTls>,
        workload: Option<&Workload>,
        secrets: &Secrets,
    ) -> Result<Rc<ServerTls>, TlsError> {
        let common = &context.common;
        let (certificate, authority) = (common.certificate.as_ref(), common.validation.trusted_ca.as_ref());
        let key = key(context, certificate, authority, workload, None);
        let stamp = stamp(certificate, authority, workload, secrets)?;
        if let Some(found) = self.servers.borrow().get(&key).filter(|cached| cached.stamp == stamp) {
            return Ok(Rc::clone(&found.config));
        }
        let pair = secrets.key_pair(certificate.ok_or(TlsError::CertificateMissing)?, workload)?;
        let roots = authority.map(|authority| secrets.roots(authority, workload)).transpose()?;
        let config = Rc::new(ServerTls::new(context, &pair, roots.as_ref())?);
        let cached = Cached { context: Arc::clone(context), stamp, config: Rc::clone(&config) };
        self.servers.borrow_mut().insert(key, cached);
        Ok(config)
    }

    /// The configuration of an upstream context; `alpn` takes the place of the context's list.
    pub fn client(
        &self,
        context: &Arc<UpstreamTls>,
        workload: Option<&Workload>,
        secrets: &Secrets,
        alpn: Option<&[String]>,
    ) -> Result<Rc<ClientTls>, TlsError> {
        let common = &context.common;
        let (certificate, authority) = (common.certificate.as_ref(), common.validation.trusted_ca.as_ref());
        let key = key(context, certificate, authority, workload, alpn);
        let stamp = stamp(certificate, authority, workload, secrets)?;
        if let Some(found) = self.clients.borrow().get(&key).filter(|cached| cached.stamp == stamp) {
            return Ok(Rc::clone(&found.config));
        }
        let pair = certificate.map(|source| secrets.key_pair(source, workload)).transpose()?;
        let roots = authority.map(|authority| secrets.roots(authority, workload)).transpose()?;
        let config = ClientTls::new(context, pair.as_ref(), roots.as_ref(), alpn.unwrap_or(&common.alpn))?;
        let config = Rc::new(config);
        let cached = Cached { context: Arc::clone(context), stamp, config: Rc::clone(&config) };
        self.clients.borrow_mut().insert(key, cached);
        Ok(config)
    }

    /// Forgets what no snapshot refers to any more.
    pub fn sweep(&self) {
        self.servers.borrow_mut().retain(|_, cached| Arc::strong_count(&cached.context) > 1);
        self.clients.borrow_mut().retain(|_, cached| Arc::strong_count(&cached.context) > 1);
    }
}

fn key<C>(
    context: &Arc<C>,
    certificate: Option<&CertificateSource>,
    authority: Option<&CaSource>,
    workload: Option<&Workload>,
    alpn: Option<&[String]>,
) -> Key {
    let by_identity =
        matches!(certificate, Some(CertificateSource::Sds(_))) || matches!(authority, Some(CaSource::Sds(_)));
    let identity = workload.filter(|_| by_identity).map(|workload| workload.identity.clone());
    (Arc::as_ptr(context) as usize, identity, alpn.map(<[String]>::to_vec))
}

fn stamp(
    certificate: Option<&CertificateSource>,
    authority: Option<&CaSource>,
    workload: Option<&Workload>,
    secrets: &Secrets,
) -> Result<Stamp, TlsError> {
    let pair = match certificate {
        Some(source @ CertificateSource::Sds(_)) => secrets.key_pair(source, workload)?.id,
        _ => 0,
    };
    let roots = match authority {
        Some(source @ CaSource::Sds(_)) => secrets.roots(source, workload)?.id,
        _ => 0,
    };
    Ok(Stamp(pair, roots))
}
