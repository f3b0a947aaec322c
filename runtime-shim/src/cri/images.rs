//! `runtime.v1.ImageService`.

use std::collections::HashMap;
use std::path::Path;
use std::pin::Pin;

use cox_cri::v1::image_service_server::ImageService;
use cox_cri::v1::{
    FilesystemIdentifier, FilesystemUsage, Image as CriImage, ImageFilter, ImageFsInfoRequest,
    ImageFsInfoResponse, ImageSpec, ImageStatusRequest, ImageStatusResponse, Int64Value,
    ListImagesRequest, ListImagesResponse, PullImageRequest, PullImageResponse, RemoveImageRequest,
    RemoveImageResponse, StreamImagesRequest, StreamImagesResponse, UInt64Value,
};
use futures::Stream;
use tonic::{Request, Response, Status};

use super::CriService;
use crate::clock::now_nanos;
use crate::error::VerbError;
use crate::images::{AnyImage, Credentials, Image};
use crate::oci::OciImage;

/// By which the kubelet learns what an image is.
const KIND: &str = "coxswain.dev/image-kind";
/// Images per message of a stream.
const CHUNK: usize = 256;

fn to_cri(image: &AnyImage) -> CriImage {
    match image {
        AnyImage::Wasm(image) => wasm_to_cri(image),
        AnyImage::Oci(image) => oci_to_cri(image),
    }
}

fn oci_to_cri(image: &OciImage) -> CriImage {
    let (uid, username) = image.user();
    CriImage {
        id: image.id.clone(),
        repo_tags: image.tags.clone(),
        repo_digests: image.digests.clone(),
        size: image.size,
        uid: uid.map(|value| Int64Value { value }),
        username,
        spec: Some(ImageSpec {
            image: image.name().to_owned(),
            ..ImageSpec::default()
        }),
        pinned: image.pinned,
    }
}

fn wasm_to_cri(image: &Image) -> CriImage {
    CriImage {
        id: image.id.to_string(),
        repo_tags: image.tags.clone(),
        repo_digests: image.digests.clone(),
        size: image.size,
        spec: Some(ImageSpec {
            image: image.name().to_owned(),
            ..ImageSpec::default()
        }),
        pinned: image.pinned,
        ..CriImage::default()
    }
}

impl CriService {
    async fn images_like(&self, filter: Option<ImageFilter>) -> Vec<CriImage> {
        let wanted = filter
            .and_then(|filter| filter.image)
            .map(|spec| spec.image)
            .filter(|name| !name.is_empty());
        let images = &self.shim.images;
        match wanted {
            Some(name) => images.find_any(&name).await.iter().map(to_cri).collect(),
            None => images.list_any().await.iter().map(to_cri).collect(),
        }
    }
}

fn filesystem(dir: &Path, bytes: u64, files: u64) -> FilesystemUsage {
    FilesystemUsage {
        timestamp: now_nanos(),
        fs_id: Some(FilesystemIdentifier {
            mountpoint: dir.display().to_string(),
        }),
        used_bytes: Some(UInt64Value { value: bytes }),
        inodes_used: Some(UInt64Value { value: files }),
    }
}

fn name_of(spec: Option<ImageSpec>) -> Result<String, VerbError> {
    spec.map(|spec| spec.image)
        .filter(|name| !name.is_empty())
        .ok_or_else(|| VerbError::Invalid("the request names no image".into()))
}

#[tonic::async_trait]
impl ImageService for CriService {
    type StreamImagesStream =
        Pin<Box<dyn Stream<Item = Result<StreamImagesResponse, Status>> + Send>>;

    async fn list_images(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        let images = self.images_like(request.into_inner().filter).await;
        Ok(Response::new(ListImagesResponse { images }))
    }

    async fn stream_images(
        &self,
        request: Request<StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let images = self.images_like(request.into_inner().filter).await;
        let chunks: Vec<_> = images
            .chunks(CHUNK)
            .map(|images| {
                Ok(StreamImagesResponse {
                    images: images.to_vec(),
                })
            })
            .collect();
        Ok(Response::new(Box::pin(futures::stream::iter(chunks))))
    }

    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Result<Response<ImageStatusResponse>, Status> {
        let request = request.into_inner();
        let found = self.shim.images.find_any(&name_of(request.image)?).await;
        let mut info = HashMap::new();
        if let Some(image) = found.as_ref().filter(|_| request.verbose) {
            let (kind, config) = match image {
                AnyImage::Wasm(image) => (
                    "wasm",
                    serde_json::json!({
                        "entrypoint": image.config.entrypoint,
                        "cmd": image.config.cmd,
                        "files": image.files.keys().collect::<Vec<_>>(),
                    }),
                ),
                AnyImage::Oci(image) => (
                    "oci",
                    serde_json::json!({
                        "entrypoint": image.config.entrypoint,
                        "cmd": image.config.cmd,
                        "user": image.config.user,
                    }),
                ),
            };
            info.insert(KIND.to_owned(), kind.to_owned());
            info.insert("info".to_owned(), config.to_string());
        }
        Ok(Response::new(ImageStatusResponse {
            image: found.map(|image| to_cri(&image)),
            info,
        }))
    }

    async fn pull_image(
        &self,
        request: Request<PullImageRequest>,
    ) -> Result<Response<PullImageResponse>, Status> {
        let request = request.into_inner();
        let auth = request.auth.unwrap_or_default();
        let credentials = Credentials {
            username: auth.username,
            password: auth.password,
            auth: auth.auth,
            identity_token: auth.identity_token,
            registry_token: auth.registry_token,
        };
        let name = name_of(request.image)?;
        let image = self
            .shim
            .images
            .pull(&name, &credentials)
            .await
            .map_err(VerbError::from)?;
        tracing::info!(image = name, id = image.id(), "Image is pulled");
        Ok(Response::new(PullImageResponse {
            image_ref: image.id().to_owned(),
        }))
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        let name = name_of(request.into_inner().image)?;
        self.shim.images.remove_any(&name).await?;
        Ok(Response::new(RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _: Request<ImageFsInfoRequest>,
    ) -> Result<Response<ImageFsInfoResponse>, Status> {
        let images = std::sync::Arc::clone(&self.shim.images);
        let own = tokio::task::spawn_blocking(move || {
            let (dir, bytes, files) = images.usage();
            filesystem(dir, bytes, files)
        });
        let own = own.await.map_err(|err| Status::internal(err.to_string()))?;
        // containerd's first: the kubelet looks at the first one alone, and there the large images are.
        let containerd = self.shim.images.oci().usage().await;
        let usage: Vec<FilesystemUsage> = containerd
            .map(|(dir, bytes, files)| filesystem(&dir, bytes, files))
            .into_iter()
            .chain([own])
            .collect();
        Ok(Response::new(ImageFsInfoResponse {
            image_filesystems: usage.clone(),
            container_filesystems: usage,
        }))
    }
}
