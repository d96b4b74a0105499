//! `x-forwarded-client-cert`: what the peer's certificate says, for the upstream.

use crate::head::RequestHead;
use crate::model::{ClientCertDetails, ForwardClientCert};

const NAME: &[u8] = b"x-forwarded-client-cert";

/// What a client certificate says. `None` where the client showed none.
#[derive(Clone, Copy, Debug)]
pub struct ClientCertificate<'a> {
    pub uri_sans: &'a [String],
    pub dns_sans: &'a [String],
    /// RFC 2253.
    pub subject: &'a str,
    pub sha256: &'a [u8; 32],
    /// Leaf first.
    pub chain_der: &'a [Vec<u8>],
    /// URI SANs of the certificate that was shown to the client.
    pub local_uri_sans: &'a [String],
}

/// Removes, keeps, appends or sets the header, as the connection manager is told.
pub fn apply(
    mode: ForwardClientCert,
    details: ClientCertDetails,
    certificate: Option<&ClientCertificate<'_>>,
    head: &mut RequestHead,
) {
    use ForwardClientCert::{AlwaysForwardOnly, AppendForward, ForwardOnly, Sanitize, SanitizeSet};
    match (mode, certificate) {
        (AlwaysForwardOnly, _) | (ForwardOnly, Some(_)) => {}
        (Sanitize, _) | (_, None) => {
            head.headers.remove(NAME);
        }
        (SanitizeSet, Some(certificate)) => head.headers.set(NAME, &element(details, certificate)),
        (AppendForward, Some(certificate)) => append(&element(details, certificate), head),
    }
}

fn append(element: &[u8], head: &mut RequestHead) {
    let mut list = Vec::with_capacity(element.len());
    for value in head.headers.get_all(NAME).filter(|value| !value.is_empty()) {
        list.extend_from_slice(value);
        list.push(b',');
    }
    list.extend_from_slice(element);
    head.headers.set(NAME, &list);
}

/// In Envoy's order, whatever the order of the configuration. Every request of a mesh gets one: it is
/// written into one buffer.
fn element(details: ClientCertDetails, certificate: &ClientCertificate<'_>) -> Vec<u8> {
    let mut text = Vec::with_capacity(512);
    for own in certificate.local_uri_sans {
        put(&mut text, &["By=", own, ";"]);
    }
    put(&mut text, &["Hash="]);
    hex(certificate.sha256, &mut text);
    if details.cert {
        let leaf = certificate.chain_der.first().map_or(&[][..], Vec::as_slice);
        put(&mut text, &[";Cert=\"", &url_encoded(&pem(leaf)), "\""]);
    }
    if details.chain {
        let chain: String = certificate.chain_der.iter().map(|der| pem(der)).collect();
        put(&mut text, &[";Chain=\"", &url_encoded(&chain), "\""]);
    }
    if details.subject {
        put(&mut text, &[";Subject=\"", certificate.subject, "\""]);
    }
    if details.uri && certificate.uri_sans.is_empty() {
        put(&mut text, &[";URI="]);
    }
    for uri in certificate.uri_sans.iter().filter(|_| details.uri) {
        put(&mut text, &[";URI=", uri]);
    }
    for name in certificate.dns_sans.iter().filter(|_| details.dns) {
        put(&mut text, &[";DNS=", name]);
    }
    text
}

fn put(text: &mut Vec<u8>, parts: &[&str]) {
    parts.iter().for_each(|part| text.extend_from_slice(part.as_bytes()));
}

fn hex(bytes: &[u8], text: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    text.extend(bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]).map(|digit| DIGITS[usize::from(digit)]));
}

fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("base64 is ASCII")).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// The characters that PEM has and a header value may not.
fn url_encoded(pem: &str) -> String {
    let mut output = String::with_capacity(pem.len() + 64);
    for letter in pem.chars() {
        match letter {
            '\n' => output.push_str("%0A"),
            ' ' => output.push_str("%20"),
            '+' => output.push_str("%2B"),
            '/' => output.push_str("%2F"),
            '=' => output.push_str("%3D"),
            other => output.push(other),
        }
    }
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    const ISTIO: ClientCertDetails =
        ClientCertDetails { subject: true, cert: false, chain: false, dns: true, uri: true };

    fn sent(mode: ForwardClientCert, with_certificate: bool, before: Option<&str>) -> Option<String> {
        let (uri, own) = (["spiffe://td/ns/a/sa/client".to_owned()], ["spiffe://td/ns/a/sa/server".to_owned()]);
        let certificate = ClientCertificate {
            uri_sans: &uri,
            dns_sans: &["a.test".to_owned(), "b.test".to_owned()],
            subject: "CN=x,O=y",
            sha256: &[0xab; 32],
            chain_der: &[vec![0xff, 0xfe, 0xfd]],
            local_uri_sans: &own,
        };
        let mut head = RequestHead::default();
        if let Some(before) = before {
            head.headers.append(NAME, before.as_bytes());
        }
        apply(mode, ISTIO, with_certificate.then_some(&certificate), &mut head);
        head.headers.get_str("x-forwarded-client-cert").map(str::to_owned)
    }

    #[test]
    fn each_mode_treats_the_header_as_told() {
        use ForwardClientCert::{AlwaysForwardOnly, AppendForward, ForwardOnly, Sanitize, SanitizeSet};
        let old = Some("old");
        let own = format!(
            "By=spiffe://td/ns/a/sa/server;Hash={};Subject=\"CN=x,O=y\";\
             URI=spiffe://td/ns/a/sa/client;DNS=a.test;DNS=b.test",
            "ab".repeat(32)
        );
        assert_eq!(sent(Sanitize, true, old), None);
        assert_eq!(sent(ForwardOnly, true, old).as_deref(), old);
        assert_eq!(sent(ForwardOnly, false, old), None);
        assert_eq!(sent(AlwaysForwardOnly, false, old).as_deref(), old);
        assert_eq!(sent(SanitizeSet, true, old), Some(own.clone()));
        assert_eq!(sent(AppendForward, true, old), Some(format!("old,{own}")));
        assert_eq!(sent(AppendForward, true, None), Some(own));
    }

    #[test]
    fn a_certificate_is_pem_in_url_encoding() {
        let text = url_encoded(&pem(&[0xff, 0xfe, 0xfd, 0xfc]));
        assert_eq!(text, "-----BEGIN%20CERTIFICATE-----%0A%2F%2F79%2FA%3D%3D%0A-----END%20CERTIFICATE-----%0A");
    }
}
