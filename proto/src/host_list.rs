//! Lists of hosts that operators write: one line of comma-separated values for each host.
//!
//! Invariant: a list has no name and no place twice, and every place, label and address range in it is valid.

use crate::codec::DecodeError;
use crate::locality::{Labels, Locality, ParseLocalityError, validate_labels};
use crate::trust::{AddressRange, ParseAddressRangeError};
use std::collections::BTreeSet;

/// Longest list, bytes.
pub const LIST_BYTES_MAX: u64 = 16 << 20;

/// One host of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedHost {
    /// The first field of the line.
    pub name: String,
    /// The place of the host.
    pub locality: Locality,
    /// The labels of its credential.
    pub labels: Labels,
    /// The address ranges of its credential.
    pub addresses: Vec<AddressRange>,
}

/// Why a line is not a host.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The line has other fields.
    #[error("expected name,locality,labels,addresses with `;` between labels and between addresses")]
    Fields,
    /// A label is not `key=value`.
    #[error("invalid label `{0}`: use key=value")]
    Label(String),
    /// The labels are invalid.
    #[error(transparent)]
    Labels(#[from] DecodeError),
    /// The place is invalid.
    #[error(transparent)]
    Locality(#[from] ParseLocalityError),
    /// A range is invalid.
    #[error(transparent)]
    Addresses(#[from] ParseAddressRangeError),
    /// The host is there twice.
    #[error("the name or the place is there twice")]
    Twice,
}

/// A list that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {source}")]
pub struct ListError {
    /// The number of the line, from 1.
    pub line: usize,
    /// Why.
    pub source: LineError,
}

/// Parses `name,locality,labels,addresses` lines. The locality is a rack, in which `name` is the host, or it is the
/// whole place of the host. Labels and addresses may be missing. A first line that begins with `name,`, empty lines and
/// lines that begin with `#` do not count.
///
/// # Errors
///
/// [`ListError`] with the first line that is not a host, or that has a name or a place again.
pub fn parse_hosts(text: &str) -> Result<Vec<ListedHost>, ListError> {
    let mut hosts = Vec::new();
    let mut seen = BTreeSet::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        let is_head = number == 0 && line.starts_with("name,");
        if line.is_empty() || line.starts_with('#') || is_head {
            continue;
        }
        let fault = |source| ListError { line: number + 1, source };
        let host = parse_host(line).map_err(fault)?;
        let place = host.locality.to_string();
        // Hosts of several racks may have one name. A name of another form is the key of its line.
        let is_new = host.name == host.locality.host || seen.insert(host.name.clone());
        if !is_new || !seen.insert(place) {
            return Err(fault(LineError::Twice));
        }
        hosts.push(host);
    }
    Ok(hosts)
}

fn parse_host(line: &str) -> Result<ListedHost, LineError> {
    let fields: Vec<&str> = line.split(',').map(str::trim).collect();
    let [name, place, rest @ ..] = fields.as_slice() else { return Err(LineError::Fields) };
    if rest.len() > 2 || name.is_empty() {
        return Err(LineError::Fields);
    }
    let place = place.trim_end_matches('/');
    let locality: Locality =
        if place.split('/').count() == 4 { place.parse()? } else { format!("{place}/{name}").parse()? };
    let list =
        |field: usize| rest.get(field).into_iter().flat_map(|text| text.split(';')).filter(|text| !text.is_empty());
    let label = |text: &str| {
        let (key, value) = text.split_once('=').ok_or_else(|| LineError::Label(text.into()))?;
        Ok::<_, LineError>((key.to_string(), value.to_string()))
    };
    let labels: Labels = list(0).map(label).collect::<Result<_, _>>()?;
    validate_labels(&labels)?;
    let addresses = list(1).map(str::parse).collect::<Result<_, _>>()?;
    Ok(ListedHost { name: name.to_string(), locality, labels, addresses })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_line_by_line() {
        let text = "name,locality,labels,addresses\n# rack 3\nh1,n/s/r3,service=cache;tier=1,10.1.0.0/16;10.2.0.0/16\n\n\
                    h2,n/s/r3/\nh1, n/s/r4 ,,10.3.0.0/16\nedge-7.example,n/s/r5/h7\n";
        let hosts = parse_hosts(text).unwrap();
        let places: Vec<String> = hosts.iter().map(|host| host.locality.to_string()).collect();
        assert_eq!(places, ["n/s/r3/h1", "n/s/r3/h2", "n/s/r4/h1", "n/s/r5/h7"]);
        assert_eq!((hosts[0].labels.len(), hosts[0].addresses.len()), (2, 2));
        assert_eq!((hosts[1].labels.len(), hosts[1].addresses.len()), (0, 0));
        assert_eq!((hosts[2].labels.len(), hosts[2].addresses.len()), (0, 1));
        assert_eq!(hosts[3].name, "edge-7.example");
    }

    #[test]
    fn a_wrong_line_is_named() {
        let cases = [
            ("h1", 1),
            ("h1,n/s/r3\nh2,n/s", 2),
            ("h1,n/s/r3\nh1,n/s/r3", 2),
            ("a,n/s/r3/h1\nb,n/s/r3/h1", 2),
            ("a,n/s/r3/h1\na,n/s/r3/h2", 2),
            ("h1,n/s/r3,novalue", 1),
            ("h1,n/s/r3,rack=x", 1),
            ("h1,n/s/r3,,10.0.0.0", 1),
            ("h1,n/s/r3,a=b,10.0.0.0/8,more", 1),
            ("../h1,n/s/r3", 1),
            (",n/s/r3/h1", 1),
        ];
        for (text, line) in cases {
            let error = parse_hosts(text).unwrap_err();
            assert_eq!(error.line, line, "{text}: {error}");
        }
        assert_eq!(parse_hosts("name,locality\n").unwrap(), []);
    }
}
