//! Links between hosts: the libp2p control plane, bulk links, framing and admission.
