//! How many watches one user may hold open: a client that leaks them must not take the server's memory with it.

use std::collections::HashMap;
use std::sync::Arc;

use cox_api::status::ApiStatus;
use parking_lot::Mutex;

/// More than any controller manager or node needs; upstream bounds them by seats and connections.
pub(crate) const WATCHES_PER_USER_MAX: usize = 10_000;

/// The open watches of every user.
#[derive(Clone, Debug, Default)]
pub(crate) struct WatchLimit(Arc<Mutex<HashMap<Arc<str>, usize>>>);

/// One open watch; dropped, it is open no more.
#[derive(Debug)]
pub(crate) struct Place {
    limit: WatchLimit,
    user: Arc<str>,
}

impl WatchLimit {
    /// A place for one more watch of a user.
    pub(crate) fn enter(&self, user: &str) -> Result<Place, ApiStatus> {
        let mut open = self.0.lock();
        let user = match open.get_key_value(user) {
            Some((user, _)) => Arc::clone(user),
            None => Arc::from(user),
        };
        let count = open.entry(Arc::clone(&user)).or_default();
        if *count >= WATCHES_PER_USER_MAX {
            return Err(ApiStatus::too_many_requests(
                format!("user has {WATCHES_PER_USER_MAX} watches open, which is the limit"),
                10,
            ));
        }
        *count += 1;
        let limit = self.clone();
        Ok(Place { limit, user })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.limit.0.lock();
        if let Some(count) = open.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_so_many_places_and_gets_them_back() {
        let limit = WatchLimit::default();
        let mut places: Vec<Place> = (0..WATCHES_PER_USER_MAX)
            .map(|_| limit.enter("a").unwrap())
            .collect();
        assert_eq!(limit.enter("a").unwrap_err().code, 429);
        assert!(
            limit.enter("b").is_ok(),
            "another user has places of its own"
        );
        places.pop();
        assert!(limit.enter("a").is_ok());
        drop(places);
        assert!(
            limit.0.lock().is_empty(),
            "nobody is remembered without need"
        );
    }
}
