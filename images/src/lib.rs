//! Builds what a cluster needs: guest kernel, root image, lab image, into a content-addressed cache.
