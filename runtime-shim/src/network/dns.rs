//! The wire format of DNS, as much as a stub resolver needs: one question out, addresses back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Which kind of address a question asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordType {
    A = 1,
    Aaaa = 28,
}

/// What an answer said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Addresses(Vec<IpAddr>),
    /// The name does not exist, or not with this type.
    Nothing,
    /// Cut off: ask again over TCP.
    Truncated,
    /// The server failed or refused.
    Failed(u8),
}

/// A message that does not follow the format, or answers something else.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("malformed DNS message")]
pub(crate) struct Malformed;

/// Encodes one recursive question; `None` when `name` cannot be a domain name.
pub(crate) fn question(id: u16, name: &str, record: RecordType) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(18 + name.len());
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&[0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0]);
    let name = name.trim_end_matches('.');
    if name.is_empty() || name.len() > 253 {
        return None;
    }
    for label in name.split('.') {
        let len = u8::try_from(label.len())
            .ok()
            .filter(|len| (1..=63).contains(len))?;
        out.push(len);
        out.extend_from_slice(label.as_bytes());
    }
    out.extend_from_slice(&[0, 0, record as u8, 0, 1]);
    Some(out)
}

/// Reads the answer to the question `asked`. Addresses of all answer records are taken: the server has followed aliases.
pub(crate) fn answer(asked: &[u8], message: &[u8]) -> Result<Answer, Malformed> {
    let header = message.get(..12).ok_or(Malformed)?;
    let question = asked.get(12..).ok_or(Malformed)?;
    // The question must come back as it was sent: another answer is not ours (names are matched without case).
    let echoed = message.get(12..12 + question.len()).ok_or(Malformed)?;
    if header[..2] != asked[..2] || header[2] & 0x80 == 0 || !echoed.eq_ignore_ascii_case(question)
    {
        return Err(Malformed);
    }
    if header[2] & 0x02 != 0 {
        return Ok(Answer::Truncated);
    }
    match header[3] & 0x0f {
        0 => {}
        3 => return Ok(Answer::Nothing),
        code => return Ok(Answer::Failed(code)),
    }
    let count = u16::from_be_bytes([header[6], header[7]]);
    let mut addresses = Vec::new();
    let mut at = 12 + question.len();
    for _ in 0..count {
        at = skip_name(message, at)?;
        let fixed = message.get(at..at + 10).ok_or(Malformed)?;
        let len = usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
        let data = message.get(at + 10..at + 10 + len).ok_or(Malformed)?;
        match (u16::from_be_bytes([fixed[0], fixed[1]]), data) {
            (1, [a, b, c, d]) => addresses.push(Ipv4Addr::new(*a, *b, *c, *d).into()),
            (28, data) => {
                if let Ok(octets) = <[u8; 16]>::try_from(data) {
                    addresses.push(Ipv6Addr::from(octets).into());
                }
            }
            _ => {}
        }
        at += 10 + len;
    }
    Ok(if addresses.is_empty() {
        Answer::Nothing
    } else {
        Answer::Addresses(addresses)
    })
}

/// The position after the name at `at`. A pointer ends a name, so nothing is followed and nothing can loop.
fn skip_name(message: &[u8], mut at: usize) -> Result<usize, Malformed> {
    loop {
        let len = *message.get(at).ok_or(Malformed)?;
        match len {
            0 => return Ok(at + 1),
            1..=63 => at += 1 + usize::from(len),
            0xc0..=0xff => return Ok(at + 2),
            _ => return Err(Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(asked: &[u8], flags: [u8; 2], records: &[&[u8]]) -> Vec<u8> {
        let mut out = asked.to_vec();
        out[2..4].copy_from_slice(&flags);
        out[7] = u8::try_from(records.len()).unwrap();
        records
            .iter()
            .for_each(|record| out.extend_from_slice(record));
        out
    }

    #[test]
    fn answers() {
        let asked = question(7, "web.default.svc", RecordType::A).unwrap();
        let alias: &[u8] = &[0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 2, 0xc0, 12];
        let address: &[u8] = &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 127, 64, 0, 9];
        let ok = [0x81, 0x80];
        let found = Answer::Addresses(vec![Ipv4Addr::new(127, 64, 0, 9).into()]);
        assert_eq!(
            answer(&asked, &reply(&asked, ok, &[alias, address])),
            Ok(found)
        );
        assert_eq!(
            answer(&asked, &reply(&asked, ok, &[alias])),
            Ok(Answer::Nothing)
        );
        assert_eq!(
            answer(&asked, &reply(&asked, [0x81, 0x83], &[])),
            Ok(Answer::Nothing),
            "no such name"
        );
        assert_eq!(
            answer(&asked, &reply(&asked, [0x83, 0x80], &[])),
            Ok(Answer::Truncated)
        );
        assert_eq!(
            answer(&asked, &reply(&asked, [0x81, 0x82], &[])),
            Ok(Answer::Failed(2))
        );
        assert_eq!(
            answer(&asked, &reply(&asked, ok, &[&address[..9]])),
            Err(Malformed),
            "cut off"
        );
        let other = question(7, "evil.default.svc", RecordType::A).unwrap();
        assert_eq!(
            answer(&asked, &reply(&other, ok, &[address])),
            Err(Malformed),
            "answers another question"
        );
    }

    #[test]
    fn no_prefix_of_an_answer_panics() {
        let asked = question(7, "a.b", RecordType::Aaaa).unwrap();
        let full = reply(
            &asked,
            [0x81, 0x80],
            &[&[
                0xc0, 12, 0, 28, 0, 1, 0, 0, 0, 9, 0, 16, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,
                13, 14, 15, 16,
            ]],
        );
        for len in 0..full.len() {
            assert!(
                answer(&asked, &full[..len]).is_err(),
                "prefix of {len} bytes"
            );
        }
        assert!(
            question(1, "a..b", RecordType::A).is_none()
                && question(1, "", RecordType::A).is_none()
        );
    }
}
