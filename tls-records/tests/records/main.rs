//! Evidence for the record layer: test vectors, interoperation with two other implementations, and hostile input.

mod hostile;
mod openssl_interop;
mod rfc8448;
mod rustls_interop;
mod support;
