//! Trust: keys, signed envelopes, credentials, and the trust document of the cluster.
//!
//! Invariant: a caller reaches the payload of an [`Envelope`] only through a check of its signature.

mod checked;
mod claims;
mod credential;
mod document;
mod envelope;
mod error;
mod token;

pub use checked::{Admitted, Published, Trust};
pub use claims::{AddressFault, ClaimError};
pub use credential::{AddressRange, Credential, ParseAddressRangeError, ParseRoleError, Role};
pub use document::{Issuer, Publisher, Revocation, Succession, TrustDocument, cluster_of};
pub use envelope::{Envelope, Keypair};
pub use error::TrustError;
pub use token::{JoinClaim, JoinToken, ParseTokenError, TokenError, TokenSecret};
