//! A router that knows its routes, and the scope that each route needs.
//!
//! Invariant: every route that [`Routes`] adds to its router is in its table, so a server can list all its routes and
//! guard each by its scope.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::handler::Handler;
use axum::http::Method;
use axum::routing::{MethodRouter, get, post};
use shoal_api::access::Scope;
use shoal_api::service::Route;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a route that needs a token asks of its callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteRule {
    /// The smallest scope that may call the route.
    pub scope: Scope,
    /// What the route does, in a word for the audit log.
    pub verb: &'static str,
    /// Whether the route may change something, so that the audit log records each call.
    pub changes: bool,
}

impl RouteRule {
    /// The rule of a guarded route that states none. Such a route is a mistake, so only an admin may call it.
    const UNSTATED: Self = Self { scope: Scope::Admin, verb: "other", changes: true };
    const READ: Self = Self { scope: Scope::Read, verb: "read", changes: false };
}

/// A method and a path as axum writes it.
type RouteKey = (Method, String);

/// The rules of some routes.
#[derive(Clone, Debug)]
pub struct RouteRules(Arc<BTreeMap<String, Vec<(Method, RouteRule)>>>);

impl RouteRules {
    /// Returns the rule of a route by its method and its path as axum writes it.
    pub fn find(&self, method: &Method, path: &str) -> RouteRule {
        // axum answers HEAD with the handler of GET.
        let method = if method == Method::HEAD { &Method::GET } else { method };
        let rules = self.0.get(path).into_iter().flatten();
        rules.filter(|(of, _)| of == method).map(|(_, rule)| *rule).next().unwrap_or(RouteRule::UNSTATED)
    }
}

/// A route and its rule. A route without one needs no token.
struct Row {
    key: RouteKey,
    rule: Option<RouteRule>,
}

/// Routes of a role. `S` is the state that their handlers still lack.
pub struct Routes<S = ()> {
    router: Router<S>,
    rows: Vec<Row>,
}

impl<S: Clone + Send + Sync + 'static> Default for Routes<S> {
    fn default() -> Self {
        Self { router: Router::new(), rows: Vec::new() }
    }
}

impl<S: Clone + Send + Sync + 'static> Routes<S> {
    /// Returns no routes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a GET route that needs no token.
    pub fn get<H: Handler<T, S>, T: 'static>(self, path: &str, handler: H) -> Self {
        self.add(Method::GET, path, None, get(handler))
    }

    /// Adds a POST route that needs no token.
    pub fn post<H: Handler<T, S>, T: 'static>(self, path: &str, handler: H) -> Self {
        self.add(Method::POST, path, None, post(handler))
    }

    /// Adds a POST route that needs no token, with a body of up to `bytes_max` bytes.
    pub fn post_up_to<H: Handler<T, S>, T: 'static>(self, bytes_max: usize, path: &str, handler: H) -> Self {
        self.add(Method::POST, path, None, post(handler).layer(DefaultBodyLimit::max(bytes_max)))
    }

    /// Adds a GET route that tokens of this scope may call.
    pub fn get_as<H: Handler<T, S>, T: 'static>(self, scope: Scope, path: &str, handler: H) -> Self {
        self.add(Method::GET, path, Some(RouteRule { scope, ..RouteRule::READ }), get(handler))
    }

    /// Adds a POST route that tokens of this scope may call. `verb` names it in the audit log. With the scope `read`
    /// the route changes nothing.
    pub fn post_as<H: Handler<T, S>, T: 'static>(
        self,
        scope: Scope,
        verb: &'static str,
        path: &str,
        handler: H,
    ) -> Self {
        self.add_post(scope, verb, path, post(handler))
    }

    /// Adds a POST route like [`Self::post_as`], with a body of up to `bytes_max` bytes.
    pub fn post_up_to_as<H: Handler<T, S>, T: 'static>(
        self,
        bytes_max: usize,
        scope: Scope,
        verb: &'static str,
        path: &str,
        handler: H,
    ) -> Self {
        self.add_post(scope, verb, path, post(handler).layer(DefaultBodyLimit::max(bytes_max)))
    }

    fn add_post(self, scope: Scope, verb: &'static str, path: &str, handler: MethodRouter<S>) -> Self {
        let rule = RouteRule { scope, verb, changes: scope > Scope::Read };
        self.add(Method::POST, path, Some(rule), handler)
    }

    fn add(mut self, method: Method, path: &str, rule: Option<RouteRule>, handler: MethodRouter<S>) -> Self {
        self.rows.push(Row { key: (method, path.to_string()), rule });
        self.router = self.router.route(path, handler);
        self
    }

    /// Makes routes that need no token elsewhere need one here, of any scope.
    pub fn for_readers(mut self) -> Self {
        for row in &mut self.rows {
            row.rule.get_or_insert(RouteRule::READ);
        }
        self
    }

    /// Returns the rules of the routes, for a guard around them.
    pub fn rules(&self) -> RouteRules {
        let mut rules: BTreeMap<String, Vec<(Method, RouteRule)>> = BTreeMap::new();
        for Row { key: (method, path), rule } in &self.rows {
            if let Some(rule) = rule {
                rules.entry(path.clone()).or_default().push((method.clone(), *rule));
            }
        }
        RouteRules(Arc::new(rules))
    }

    /// Adds the routes of another table.
    pub fn merge(mut self, other: Self) -> Self {
        self.rows.extend(other.rows);
        self.router = self.router.merge(other.router);
        self
    }

    /// Sets the state of the handlers.
    pub fn with_state(self, state: S) -> Routes {
        Routes { router: self.router.with_state(state), rows: self.rows }
    }

    /// Changes the router, e.g. by a layer around all handlers. The function adds no routes.
    pub fn map(self, change: impl FnOnce(Router<S>) -> Router<S>) -> Self {
        Self { router: change(self.router), rows: self.rows }
    }

    /// Returns the router and the table of its routes.
    pub fn into_parts(self) -> (Router<S>, Vec<Route>) {
        let route = |Row { key: (method, path), rule }: Row| Route {
            method: method.to_string(),
            // axum writes the rest of a path as `{*name}`, OpenAPI has only `{name}`.
            path: path.replace("{*", "{"),
            scope: rule.map(|rule| rule.scope),
        };
        (self.router, self.rows.into_iter().map(route).collect())
    }
}
