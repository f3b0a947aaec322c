//! `runtime.v1.ImageService`.

use std::collections::HashMap;
use std::pin::Pin;

use cox_cri::v1::image_service_server::ImageService;
use cox_cri::v1::{
    FilesystemIdentifier, FilesystemUsage, Image as CriImage, ImageFilter, ImageFsInfoRequest,
    ImageFsInfoResponse, ImageSpec, ImageStatusRequest, ImageStatusResponse, ListImagesRequest,
    ListImagesResponse, PullImageRequest, PullImageResponse, RemoveImageRequest,
    RemoveImageResponse, StreamImagesRequest, StreamImagesResponse, UInt64Value,
};
use futures::Stream;
use tonic::{Request, Response, Status};

use super::CriService;
use crate::clock::now_nanos;
use crate::error::VerbError;
use crate::images::{Credentials, Image};

/// By which the kubelet learns what an image is.
const KIND: &str = "coxswain.dev/image-kind";
/// Images per message of a stream.
const CHUNK: usize = 256;

fn to_cri(image: &Image) -> CriImage {
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
    fn images_like(&self, filter: Option<ImageFilter>) -> Vec<CriImage> {
        let wanted = filter
            .and_then(|filter| filter.image)
            .map(|spec| spec.image)
            .filter(|name| !name.is_empty());
        match wanted {
            Some(name) => self
                .shim
                .images
                .find(&name)
                .iter()
                .map(|image| to_cri(image))
                .collect(),
            None => self
                .shim
                .images
                .list()
                .iter()
                .map(|image| to_cri(image))
                .collect(),
        }
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
        let images = self.images_like(request.into_inner().filter);
        Ok(Response::new(ListImagesResponse { images }))
    }

    async fn stream_images(
        &self,
        request: Request<StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let images = self.images_like(request.into_inner().filter);
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
        let found = self.shim.images.find(&name_of(request.image)?);
        let mut info = HashMap::new();
        if let Some(image) = found.as_ref().filter(|_| request.verbose) {
            info.insert(KIND.to_owned(), "wasm".to_owned());
            let config = serde_json::json!({
                "entrypoint": image.config.entrypoint,
                "cmd": image.config.cmd,
                "files": image.files.keys().collect::<Vec<_>>(),
            });
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
        tracing::info!(image = name, id = %image.id, "Image is pulled");
        Ok(Response::new(PullImageResponse {
            image_ref: image.id.to_string(),
        }))
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        let name = name_of(request.into_inner().image)?;
        self.shim
            .images
            .remove(&name)
            .await
            .map_err(VerbError::from)?;
        Ok(Response::new(RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _: Request<ImageFsInfoRequest>,
    ) -> Result<Response<ImageFsInfoResponse>, Status> {
        let images = std::sync::Arc::clone(&self.shim.images);
        let usage = tokio::task::spawn_blocking(move || {
            let (dir, bytes, files) = images.usage();
            FilesystemUsage {
                timestamp: now_nanos(),
                fs_id: Some(FilesystemIdentifier {
                    mountpoint: dir.display().to_string(),
                }),
                used_bytes: Some(UInt64Value { value: bytes }),
                inodes_used: Some(UInt64Value { value: files }),
            }
        });
        let usage = usage
            .await
            .map_err(|err| Status::internal(err.to_string()))?;
        Ok(Response::new(ImageFsInfoResponse {
            image_filesystems: vec![usage.clone()],
            container_filesystems: vec![usage],
        }))
    }
}
