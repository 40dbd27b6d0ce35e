//! A router that knows its routes.
//!
//! Invariant: every route that [`Routes`] adds to its router is in its table, so a server can list all its routes.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::handler::Handler;
use axum::routing::{MethodRouter, get, post};
use shoal_api::service::Route;

/// Routes of a role. `S` is the state that their handlers still lack.
pub struct Routes<S = ()> {
    router: Router<S>,
    table: Vec<Route>,
}

impl<S: Clone + Send + Sync + 'static> Default for Routes<S> {
    fn default() -> Self {
        Self { router: Router::new(), table: Vec::new() }
    }
}

impl<S: Clone + Send + Sync + 'static> Routes<S> {
    /// Returns no routes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a GET route.
    pub fn get<H: Handler<T, S>, T: 'static>(self, path: &str, handler: H) -> Self {
        self.add("GET", path, get(handler))
    }

    /// Adds a POST route.
    pub fn post<H: Handler<T, S>, T: 'static>(self, path: &str, handler: H) -> Self {
        self.add("POST", path, post(handler))
    }

    /// Adds a POST route whose body may have up to `bytes_max` bytes.
    pub fn post_up_to<H: Handler<T, S>, T: 'static>(self, bytes_max: usize, path: &str, handler: H) -> Self {
        self.add("POST", path, post(handler).layer(DefaultBodyLimit::max(bytes_max)))
    }

    fn add(mut self, method: &str, path: &str, handler: MethodRouter<S>) -> Self {
        // axum writes the rest of a path as `{*name}`, OpenAPI has only `{name}`.
        self.table.push(Route { method: method.into(), path: path.replace("{*", "{") });
        self.router = self.router.route(path, handler);
        self
    }

    /// Adds the routes of another table.
    pub fn merge(mut self, other: Self) -> Self {
        self.table.extend(other.table);
        self.router = self.router.merge(other.router);
        self
    }

    /// Sets the state of the handlers.
    pub fn with_state(self, state: S) -> Routes {
        Routes { router: self.router.with_state(state), table: self.table }
    }

    /// Changes the router, e.g. by a layer around all handlers. The function adds no routes.
    pub fn map(self, change: impl FnOnce(Router<S>) -> Router<S>) -> Self {
        Self { router: change(self.router), table: self.table }
    }

    /// Returns the router and the table of its routes.
    pub fn into_parts(self) -> (Router<S>, Vec<Route>) {
        (self.router, self.table)
    }
}
