//! A small map from applications: most devices have a few, and a session lives as long as its connection. A tree would keep
//! room for eleven of them.

use idl::ids::AppId;

/// Values by application, in the order of their ids, with no room to spare.
pub(super) struct ByApp<T>(Vec<(AppId, T)>);

impl<T> ByApp<T> {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    fn find(&self, app: &AppId) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.cmp(app))
    }

    pub(super) fn get(&self, app: &AppId) -> Option<&T> {
        let at = self.find(app).ok()?;
        self.0.get(at).map(|(_, value)| value)
    }

    pub(super) fn get_mut(&mut self, app: &AppId) -> Option<&mut T> {
        let at = self.find(app).ok()?;
        self.0.get_mut(at).map(|(_, value)| value)
    }

    /// Puts a value in place of the one that there may be.
    pub(super) fn insert(&mut self, app: AppId, value: T) {
        match self.find(&app) {
            Ok(at) => {
                if let Some(place) = self.0.get_mut(at) {
                    *place = (app, value);
                }
            }
            Err(at) => {
                self.0.reserve_exact(1);
                self.0.insert(at, (app, value));
            }
        }
    }

    pub(super) fn remove(&mut self, app: &AppId) -> Option<T> {
        let at = self.find(app).ok()?;
        let (_, value) = self.0.remove(at);
        self.0.shrink_to_fit();
        Some(value)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&AppId, &mut T)> {
        self.0.iter_mut().map(|(app, value)| (&*app, value))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(_, value)| value)
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut().map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_map() {
        let mut map = ByApp::new();
        let [a, b, c] = ["com.a", "com.b", "com.c"].map(|name| name.parse::<AppId>().expect("an app"));
        for (app, value) in [(&b, 2), (&c, 3), (&a, 1), (&b, 20)] {
            map.insert(app.clone(), value);
        }
        assert_eq!(map.values().copied().collect::<Vec<_>>(), [1, 20, 3]);
        assert_eq!((map.remove(&b), map.remove(&b), map.get(&b)), (Some(20), None, None));
        *map.get_mut(&c).expect("it is there") += 1;
        assert_eq!(map.iter_mut().map(|(app, value)| (app.clone(), *value)).collect::<Vec<_>>(), [(a, 1), (c, 4)]);
    }
}
