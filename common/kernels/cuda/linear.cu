#include "common/base/check.h"
#include "common/kernels/cuda/cuda_device.h"
#include "common/kernels/cuda/tensor_rows.h"
#include "common/kernels/headwise_linear.h"

namespace expertmesh::EM_DEVICE_NAMESPACE {
namespace {

// A kernel's arguments have 4 KiB. More heads are more launches.
constexpr std::size_t kHeadsAtOnce = 256;

// y of head h [M,N] = x of head h [M,K] times w[h]^T, plus bias.
template <std::size_t kHeads>
struct LinearJob {
  std::byte const* w[kHeads] = {};
  std::size_t row_bytes = 0;  // of a w
  float const* bias = nullptr;
  float const* x = nullptr;
  float* y = nullptr;
  std::size_t x_stride = 0;
  std::size_t y_stride = 0;
  std::size_t x_head = 0;  // elements from one head's columns to the next's
  std::size_t y_head = 0;
  std::size_t n = 0;
  std::size_t k = 0;
  std::size_t m = 0;
  std::size_t heads = 1;
  std::size_t tiles = 0;   // of a head
  std::size_t passes = 0;  // of a head
  unsigned pass_rows = 0;
  unsigned chunk_steps = 0;
  bool rounds = false;

  // Passes of a tile are neighbours: the first brings the weights nearer for the others.
  EM_BOTH std::size_t num_parts() const { return heads * tiles * passes; }
  __device__ DotPart part(std::size_t i) const {
    std::size_t const pass = i % passes;
    std::size_t const left = m - pass * pass_rows;
    return {.tile = i / passes % tiles,
            .pass = i / passes / tiles * passes + pass,
            .rows = left < pass_rows ? static_cast<unsigned>(left) : pass_rows};
  }
  __device__ std::size_t head(DotPart const& part) const { return kHeads == 1 ? 0 : part.pass / passes; }
  __device__ std::size_t row(DotPart const& part, unsigned r) const { return part.pass % passes * pass_rows + r; }

  __device__ unsigned rows_per_output() const { return 1; }
  __device__ std::byte const* weight_row(DotPart const& part, std::size_t output, unsigned r) const {
    std::size_t const row = output + r < n ? output + r : n - 1;
    return w[head(part)] + row * row_bytes;
  }
  __device__ float const* x_row(DotPart const& part, unsigned r) const {
    return x + row(part, r) * x_stride + head(part) * x_head;
  }
  __device__ void finish(DotPart const& part, DotPlace const& place, float sum) const {
    std::size_t const column = place.output + place.r;
    if (!place.first || place.m >= part.rows || column >= n) return;
    y[row(part, place.m) * y_stride + head(part) * y_head + column] = bias ? sum + bias[column] : sum;
  }
};

// columns: of a tile.
template <class Shape, std::size_t kHeads>
LinearJob<kHeads> in_parts(std::size_t columns, LinearJob<kHeads> job) {
  job.tiles = (job.n + columns - 1) / columns;
  job.pass_rows = static_cast<unsigned>(std::min<std::size_t>(job.m, Shape::kPassRows));
  job.passes = (job.m + job.pass_rows - 1) / job.pass_rows;
  return job;
}

// A narrow weight leaves most of the device idle unless rows are shared out too.
template <std::size_t kHeads>
void launch_float32(Stream& stream, LinearJob<kHeads> const& job) {
  auto const thin = in_parts<Thin>(kDotWarps, job);
  if (job.m <= Thin::kPassRows || thin.num_parts() <= num_multiprocessors(stream) * Thin::kBlocks) {
    launch_dot_rows<Thin, 1>(stream, "linear", thin.num_parts(), thin.pass_rows, thin);
  } else {
    auto const wide = in_parts<Wide>(kDotWarps * 4, job);
    launch_dot_rows<Wide, 4>(stream, "linear", wide.num_parts(), wide.pass_rows, wide);
  }
}

template <class Shape, class W, std::size_t kHeads>
void launch_parts(Stream& stream, LinearJob<kHeads> const& job) {
  launch_tensor_rows<Shape, W>(stream, "linear", job.num_parts(), job.pass_rows, job);
}
// The largest tiles that leave no multiprocessor idle, or of the largest so many that what is not read again from L2
// makes up for those that are.
template <class W, std::size_t kHeads>
void launch_tensor(Stream& stream, LinearJob<kHeads> const& job) {
  std::size_t const multiprocessors = num_multiprocessors(stream);
  auto const few = in_parts<Few>(Few::kRows, job);
  if (job.m <= Few::kPassRows || few.num_parts() <= multiprocessors * Few::kBlocks)
    return launch_parts<Few, W>(stream, few);
  auto const many = in_parts<ManyOf<W>>(ManyOf<W>::kRows, job);
  if (job.m > 2 * Some::kPassRows && many.num_parts() * 5 >= multiprocessors)
    return launch_parts<ManyOf<W>, W>(stream, many);
  auto const some = in_parts<Some>(Some::kRows, job);
  if (some.num_parts() >= multiprocessors) return launch_parts<Some, W>(stream, some);
  launch_parts<Narrow, W>(stream, in_parts<Narrow>(Narrow::kRows, job));
}

// heads: at most kHeads.
template <std::size_t kHeads>
LinearJob<kHeads> job_of(MatrixView<float const> x, std::span<DeviceWeight const> heads, float const* bias,
                         HeadColumns const& columns, MatrixView<float> y) {
  DeviceWeight const& w = heads.front();
  LinearJob<kHeads> job{.row_bytes = device_row(w.storage, w.k).bytes,
                        .bias = bias,
                        .x = x.data,
                        .y = y.data,
                        .x_stride = x.stride,
                        .y_stride = y.stride,
                        .x_head = columns.x_stride,
                        .y_head = columns.y_stride,
                        .n = w.n,
                        .k = w.k,
                        .m = x.rows,
                        .heads = heads.size(),
                        .rounds = w.activation == ActivationRule::round_to_bf16};
  for (std::size_t h = 0; h < heads.size(); ++h) job.w[h] = heads[h].data;
  return job;
}

}  // namespace

void CudaDevice::linear(MatrixView<float const> x, DeviceWeight const& w, std::span<float const> bias,
                        MatrixView<float> y) {
  if (x.rows == 0) return;
  auto const job = job_of<1>(x, {&w, 1}, bias.empty() ? nullptr : bias.data(), {}, y);
  if (w.storage == DType::f32) return launch_float32(*stream_, job);
  with_format(w.storage, [&](auto format) { launch_tensor<decltype(format)>(*stream_, job); });
}

// What they are made of, the latents of attention, is rearranged when it is loaded: no checkpoint has codes of it.
void CudaDevice::headwise_linear(MatrixView<float const> x, std::span<DeviceWeight const> w, HeadColumns const& columns,
                                 MatrixView<float> y) {
  if (x.rows == 0) return;
  for (std::size_t head = 0; head < w.size(); head += kHeadsAtOnce) {
    std::size_t const count = std::min(kHeadsAtOnce, w.size() - head);
    x.data += head == 0 ? 0 : kHeadsAtOnce * columns.x_stride;
    y.data += head == 0 ? 0 : kHeadsAtOnce * columns.y_stride;
    auto const job = job_of<kHeadsAtOnce>(x, w.subspan(head, count), nullptr, columns, y);
    if (w.front().storage == DType::f32) {
      launch_float32(*stream_, job);
    } else {
      EM_CHECK(w.front().storage == DType::bf16, "heads of " << name_of(w.front().storage));
      launch_tensor<Bf16Weights>(*stream_, job);
    }
  }
}

}  // namespace expertmesh::EM_DEVICE_NAMESPACE
