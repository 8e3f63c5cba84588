//! Trace context: W3C `traceparent` in and out, B3 read where there is none.
//!
//! Source: W3C Trace Context section 3.2 (version 00, later versions read by their first four
//! fields); B3 single and multiple headers as Zipkin describes them.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::environment::Sampling;
use crate::http::headers::once;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// Where a request stands in its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// Never zero.
    pub trace_id: u128,
    /// The caller's span; zero where the trace starts here.
    pub parent_id: u64,
    /// Whether spans of this trace are exported.
    pub sampled: bool,
}

impl TraceContext {
    /// The caller's context, or a new trace; `sampling` decides where the caller does not.
    pub fn from_headers(headers: &HeaderMap, sampling: Sampling) -> Self {
        let ratio = sampling.ratio;
        let given = headers
            .get(&TRACEPARENT)
            .and_then(|value| parse_traceparent(value.as_bytes()))
            .or_else(|| parse_b3(headers, ratio));
        match given {
            Some(context) if sampling.parent_based => context,
            Some(context) => Self { sampled: sample(ratio), ..context },
            None => Self { trace_id: fastrand::u128(1..), parent_id: 0, sampled: sample(ratio) },
        }
    }

    /// Writes `traceparent` for the next hop, with `span` as its parent. B3 headers, where the caller
    /// sent them, are brought in line: two contexts that disagree would tear the trace.
    pub fn inject(&self, headers: &mut HeaderMap, span: u64) {
        headers.insert(TRACEPARENT, self.header(span));
        if headers.contains_key(&B3) || headers.contains_key(&B3_TRACE) {
            self.inject_b3(headers, span);
        }
    }

    fn inject_b3(&self, headers: &mut HeaderMap, span: u64) {
        let (trace, span) = (format!("{:032x}", self.trace_id), format!("{span:016x}"));
        let sampled = if self.sampled { "1" } else { "0" };
        let value = |text: &str| {
            HeaderValue::try_from(text).expect("hexadecimal digits and dashes are valid in a header")
        };
        if headers.contains_key(&B3) {
            headers.insert(B3, value(&format!("{trace}-{span}-{sampled}")));
        }
        if headers.contains_key(&B3_TRACE) {
            headers.insert(B3_TRACE, value(&trace));
            headers.insert(B3_SPAN, value(&span));
            headers.insert(B3_SAMPLED, value(sampled));
            headers.remove(B3_PARENT);
            headers.remove(B3_FLAGS);
        }
    }

    fn header(&self, span: u64) -> HeaderValue {
        let mut text = [b'0'; 55];
        write_hex(&mut text[3..35], self.trace_id);
        write_hex(&mut text[36..52], u128::from(span));
        (text[2], text[35], text[52]) = (b'-', b'-', b'-');
        text[54] = if self.sampled { b'1' } else { b'0' };
        once(HeaderValue::from_bytes(&text).expect("hexadecimal digits and dashes are valid in a header"))
    }

    /// The trace's id, for `x-request-id`.
    pub fn request_id(&self) -> HeaderValue {
        let mut text = [b'0'; 32];
        write_hex(&mut text, self.trace_id);
        HeaderValue::from_bytes(&text).expect("hexadecimal digits are valid in a header")
    }
}

/// A new span's id: never zero.
pub fn new_span_id() -> u64 {
    fastrand::u64(1..)
}

/// The decision for a trace that starts here.
fn sample(ratio: f64) -> bool {
    ratio > 0.0 && fastrand::f64() < ratio
}

fn write_hex(target: &mut [u8], mut value: u128) {
    for digit in target.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(value & 15) as usize];
        value >>= 4;
    }
}

/// Lower-case hexadecimal only (section 3.2.2.3), unless `any_case`.
fn hex(text: &[u8], any_case: bool) -> Option<u128> {
    let mut value = 0u128;
    for byte in text {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' if any_case => byte - b'A' + 10,
            _ => return None,
        };
        value = (value << 4) | u128::from(digit);
    }
    Some(value)
}

fn parse_traceparent(text: &[u8]) -> Option<TraceContext> {
    let version = hex(text.get(..2)?, false)?;
    let well_formed = version != 0xff
        && (text.len() == 55 || (version > 0 && text.get(55) == Some(&b'-')))
        && (text[2], text[35], text[52]) == (b'-', b'-', b'-');
    if !well_formed {
        return None;
    }
    let trace_id = hex(&text[3..35], false)?;
    let parent_id = u64::try_from(hex(&text[36..52], false)?).ok()?;
    let flags = hex(&text[53..55], false)?;
    (trace_id != 0 && parent_id != 0).then_some(TraceContext { trace_id, parent_id, sampled: flags & 1 == 1 })
}

fn parse_b3(headers: &HeaderMap, ratio: f64) -> Option<TraceContext> {
    let (trace, span, decision) = match headers.get(&B3) {
        Some(single) => {
            let mut parts = single.as_bytes().split(|b| *b == b'-');
            (parts.next()?, parts.next()?, parts.next())
        }
        None => {
            let debug = headers.get(&B3_FLAGS).filter(|flags| *flags == "1").map(HeaderValue::as_bytes);
            let sampled = debug.or_else(|| headers.get(&B3_SAMPLED).map(HeaderValue::as_bytes));
            (headers.get(&B3_TRACE)?.as_bytes(), headers.get(&B3_SPAN)?.as_bytes(), sampled)
        }
    };
    if !matches!(trace.len(), 16 | 32) || span.len() != 16 {
        return None;
    }
    let trace_id = hex(trace, true)?;
    let parent_id = u64::try_from(hex(span, true)?).ok()?;
    let sampled = match decision {
        Some(b"1" | b"d" | b"true") => true,
        Some(_) => false,
        // B3 may defer the decision: it is ours then.
        None => sample(ratio),
    };
    (trace_id != 0 && parent_id != 0).then_some(TraceContext { trace_id, parent_id, sampled })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn traceparent_goes_through_with_a_new_parent() {
        let incoming = headers(&[("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]);
        let context = TraceContext::from_headers(&incoming, Sampling::parent_based(0.0));
        assert_eq!(context.parent_id, 0xb7ad_6b71_6920_3331);
        let mut outgoing = HeaderMap::new();
        context.inject(&mut outgoing, 0x10);
        assert_eq!(outgoing["traceparent"], "00-0af7651916cd43dd8448eb211c80319c-0000000000000010-01");
    }

    #[test]
    fn malformed_context_starts_a_new_trace() {
        for text in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(parse_traceparent(text.as_bytes()), None, "{text}");
        }
        assert!(
            parse_traceparent(b"01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-later").is_some()
        );
        let context =
            TraceContext::from_headers(&headers(&[("traceparent", "x")]), Sampling::parent_based(1.0));
        assert!(context.sampled && context.trace_id != 0 && context.parent_id == 0);
    }

    #[test]
    fn b3_is_read_in_both_forms() {
        let single = headers(&[("b3", "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1")]);
        let multiple = headers(&[
            ("x-b3-traceid", "463ac35c9f6413ad"),
            ("x-b3-spanid", "a2fb4a1d1a96d312"),
            ("x-b3-sampled", "0"),
        ]);
        let context = TraceContext::from_headers(&single, Sampling::parent_based(0.0));
        assert_eq!((context.trace_id, context.sampled), (0x80f1_98ee_5634_3ba8_64fe_8b2a_57d3_eff7, true));
        let context = TraceContext::from_headers(&multiple, Sampling::parent_based(1.0));
        assert_eq!((context.trace_id, context.sampled), (0x463a_c35c_9f64_13ad, false));
    }

    #[test]
    fn b3_goes_on_in_line_with_traceparent() {
        let mut map = headers(&[
            ("b3", "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1"),
            ("x-b3-traceid", "80f198ee56343ba864fe8b2a57d3eff7"),
            ("x-b3-spanid", "e457b5a2e4d86bd1"),
            ("x-b3-parentspanid", "05e3ac9a4f6e3b90"),
        ]);
        let context = TraceContext::from_headers(&map, Sampling::parent_based(0.0));
        context.inject(&mut map, 0x10);
        assert_eq!(map["b3"], "80f198ee56343ba864fe8b2a57d3eff7-0000000000000010-1");
        assert_eq!(
            (&map["x-b3-spanid"], &map["x-b3-sampled"]),
            (&HeaderValue::from_static("0000000000000010"), &HeaderValue::from_static("1"))
        );
        assert!(!map.contains_key("x-b3-parentspanid"));
    }

    #[test]
    fn the_ratio_decides_for_traces_that_start_here() {
        fastrand::seed(7);
        let sampled = (0..10_000)
            .filter(|_| TraceContext::from_headers(&HeaderMap::new(), Sampling::parent_based(0.1)).sampled)
            .count();
        assert!((800..1200).contains(&sampled), "{sampled}");
        assert!(!TraceContext::from_headers(&HeaderMap::new(), Sampling::parent_based(0.0)).sampled);
    }
}
