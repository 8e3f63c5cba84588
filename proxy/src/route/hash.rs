//! The key by which ring hash and Maglev choose an endpoint.
//!
//! All sidecars must agree on it, whatever their version, machine or byte order, so nothing of it is
//! drawn at start. A client that chooses its keys can therefore choose its endpoint: that is what
//! affinity means.

use std::net::{IpAddr, SocketAddr};

use http::header::COOKIE;
use http::{HeaderMap, HeaderName};
use outrigger_api::resource::policy::HashKey;

use super::Invalid;

/// Where a request's key comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashSource {
    /// A header's value; of a repeated header all values, as one list.
    Header(HeaderName),
    /// The value of the first cookie of this name.
    Cookie(Box<str>),
    /// Address and port of the application's connection: its requests stay together. The address alone
    /// would be one key for all that speak to their sidecar over loopback.
    Source,
}

impl HashSource {
    /// # Errors
    /// Not exactly one of header, cookie and source, or a header name that is none.
    pub fn compile(spec: &HashKey) -> Result<Self, Invalid> {
        match (&spec.header, &spec.cookie, spec.source) {
            (Some(header), None, false) => HeaderName::try_from(header)
                .map(Self::Header)
                .map_err(|_| Invalid(format!("{header:?} is not a header name"))),
            (None, Some(cookie), false) => Ok(Self::Cookie(cookie.as_str().into())),
            (None, None, true) => Ok(Self::Source),
            _ => Err(Invalid("one of header, cookie and source".to_owned())),
        }
    }

    /// The request's key; `None` where it has none, or an empty one: any endpoint will do.
    pub fn key(&self, headers: &HeaderMap, source: SocketAddr) -> Option<u64> {
        let mut hash = Hash::default();
        match self {
            Self::Header(name) => {
                for (index, value) in headers.get_all(name).iter().enumerate() {
                    if index > 0 {
                        hash.add(b",");
                    }
                    hash.add(value.as_bytes());
                }
            }
            Self::Cookie(name) => hash.add(cookie(headers, name)?.as_bytes()),
            Self::Source => {
                match source.ip().to_canonical() {
                    IpAddr::V4(address) => hash.add(&address.octets()),
                    IpAddr::V6(address) => hash.add(&address.octets()),
                }
                hash.add(&source.port().to_be_bytes());
            }
        }
        (hash.length > 0).then(|| hash.finish())
    }
}

/// The value of the first cookie of this name (RFC 6265 section 4.2.1), whose case matters.
fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim_matches([' ', '\t']).split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value)
}

/// FNV-1a with 64 bits (draft-eastlake-fnv, Fowler, Noll and Vo), finished with the 64-bit mixer of
/// `MurmurHash3` (Appleby), for FNV's high bits hardly depend on the last bytes of a short key.
#[derive(Debug)]
struct Hash {
    state: u64,
    length: usize,
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

impl Default for Hash {
    fn default() -> Self {
        Self { state: FNV_OFFSET, length: 0 }
    }
}

impl Hash {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.state = (self.state ^ u64::from(*byte)).wrapping_mul(FNV_PRIME);
        }
        self.length += bytes.len();
    }

    fn finish(&self) -> u64 {
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        mixed ^ (mixed >> 33)
    }
}
