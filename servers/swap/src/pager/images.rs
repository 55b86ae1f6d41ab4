//! Taking in images and forgetting them.

use super::{IMAGES, Pager};
use crate::{
    frames::{Frame, List, Usage},
    image::{self, Checked, Content, Image, ImagePart},
    machine::Machine,
};
use alloc::vec::Vec;
use protocol::{
    abi::Target,
    layout::PAGE,
    service::pager::{Part, Response},
};

/// Frames freed before looking at the list again; only the end matters here.
pub(super) const ALL: u32 = u32::MAX;

impl Pager<'_> {
    /// [`protocol::service::pager::Request::DefineImage`].
    pub(super) fn define_image(&mut self, machine: &mut impl Machine, lent: Target, parts: &[Part]) -> Response {
        let Some(checked) = image::check(parts) else { return Response::BadArgument };
        let pages: u64 = checked.iter().map(|part| u64::from(part.data_pages())).sum();
        if pages + 1 > self.available() {
            return Response::OutOfMemory;
        }
        if self.images.reserve().is_err() {
            return Response::OutOfMemory;
        }
        let mut frames = List::default();
        let number = self.images.next();
        let taken = self.take_in(machine, lent, &checked, number, &mut frames);
        let recorded = taken
            .and_then(|parts| self.record_image(machine, number, &image::record(&parts), &mut frames).map(|_| parts));
        let parts = match recorded {
            Ok(parts) => parts,
            Err(response) => {
                self.frames.release(&mut frames, ALL);
                return response;
            }
        };
        let used = u64::from(frames.len());
        match self.images.insert(Image { parts, frames, users: 0, template: None }) {
            Ok(number) => {
                self.image_frames += used;
                Response::Image(number)
            }
            // Room was made above.
            Err(_) => Response::OutOfMemory,
        }
    }

    /// Writes the record that makes the image known to a restarted pager, only when all its pages are there; its frame.
    pub(super) fn record_image(
        &mut self,
        machine: &mut impl Machine,
        number: u32,
        record: &[u8; PAGE as usize],
        frames: &mut List,
    ) -> Result<Frame, Response> {
        let frame = self.frames.take(frames, IMAGES + number, Usage::Filling(0)).ok_or(Response::OutOfMemory)?;
        machine.write_frame(frame, 0, record).map_err(|_| Response::OutOfMemory)?;
        self.frames.turn(frame, Usage::ImageRecord);
        Ok(frame)
    }

    /// Copies the data of all parts into frames of `frames`.
    fn take_in(
        &mut self,
        machine: &mut impl Machine,
        lent: Target,
        checked: &[Checked],
        number: u32,
        frames: &mut List,
    ) -> Result<Vec<ImagePart>, Response> {
        let mut parts = Vec::new();
        parts.try_reserve_exact(checked.len()).map_err(|_| Response::OutOfMemory)?;
        for part in checked {
            let count = part.data_pages();
            let mut data = Vec::new();
            data.try_reserve_exact(count as usize).map_err(|_| Response::OutOfMemory)?;
            for index in 0..count {
                let (offset, at, length) = part.piece(index);
                let page = &mut *self.page;
                page.fill(0);
                let piece = page.get_mut(at..at + length).ok_or(Response::BadArgument)?;
                machine.read_lent(lent, offset, piece).map_err(|_| Response::BadArgument)?;
                if page.iter().all(|byte| *byte == 0) {
                    data.push(Content::Zero);
                    continue;
                }
                let usage = Usage::Image(part.page + index);
                let frame = self.frames.take(frames, IMAGES + number, usage).ok_or(Response::OutOfMemory)?;
                machine.write_frame(frame, 0, page).map_err(|_| Response::OutOfMemory)?;
                data.push(Content::Stored(frame));
            }
            parts.push(ImagePart { page: part.page, pages: part.pages, access: part.access, data });
        }
        Ok(parts)
    }

    /// [`protocol::service::pager::Request::DropImage`].
    pub(super) fn drop_image(&mut self, number: u32) -> Response {
        match self.images.get(number) {
            None => Response::NotFound,
            Some(image) if image.users > 0 => Response::InUse,
            Some(_) => {
                if let Some(mut image) = self.images.remove(number) {
                    self.image_frames -= u64::from(image.frames.len());
                    // The record first: what is left of an image without one is nobody's.
                    if let Some(record) = self.frames.find(IMAGES + number, Usage::ImageRecord) {
                        self.frames.give(&mut image.frames, record);
                    }
                    self.frames.release(&mut image.frames, ALL);
                    if let Some(base) = image.template.and_then(|template| self.images.get_mut(template.base)) {
                        base.users = base.users.saturating_sub(1);
                    }
                }
                Response::Done
            }
        }
    }
}
