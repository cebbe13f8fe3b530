//! A site's static keys and their text forms.
