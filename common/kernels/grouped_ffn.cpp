#include "common/kernels/grouped_ffn.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "common/base/check.h"
#include "common/kernels/activation_rows.h"
#include "common/kernels/exec_scratch.h"
#include "common/kernels/gemm.h"

namespace expertmesh {
namespace {

// m rows of scratch, from `row` on.
GemmJob job_of(Exec const& exec, PackedLinear const& linear, std::size_t row, std::size_t m) {
  return {.w = linear.w,
          .bias = linear.bias.empty() ? nullptr : linear.bias.data(),
          .x = exec.scratch().x_rows.data() + row,
          .y = exec.scratch().y_rows.data() + row,
          .m = m};
}

// Groups that go through all of an FFN before the next ones do, so that their rows stay in the nearer caches.
struct Wave {
  GroupedRows const& rows;
  std::size_t first, end;  // groups

  [[nodiscard]] std::size_t first_row() const { return rows.offsets[first]; }
  [[nodiscard]] std::size_t num_rows() const { return rows.offsets[end] - first_row(); }
};
// Of hidden rows and outputs, for each thread: about what a core has of a second-level cache. Between waves threads
// wait for each other, which fewer rows would not pay for.
constexpr std::size_t kWaveBytes = std::size_t{1} << 20;

// One weight of each group of a wave, over the rows that scratch.x_rows and y_rows name.
auto jobs_of(Exec const& exec, Wave const& wave, PackedLinear FfnWeights::*part) {
  return [&exec, &wave, part](std::size_t g) {
    std::size_t const row = wave.rows.offsets[wave.first + g];
    return job_of(exec, wave.rows.groups[wave.first + g]->*part, row - wave.first_row(),
                  wave.rows.offsets[wave.first + g + 1] - row);
  };
}

// body(row of the wave, row of all, its weights) for all rows, shared out among the threads.
template <class Body>
void each_row(Exec const& exec, Wave const& wave, Body body) {
  exec.pool().parallel_for(wave.num_rows(), [&](std::size_t begin, std::size_t end, std::size_t) {
    auto const& offsets = wave.rows.offsets;
    auto next = std::ranges::upper_bound(offsets, wave.first_row() + begin);  // end of the row's group
    for (std::size_t r = begin; r < end; ++r) {
      while (*next == wave.first_row() + r) ++next;
      body(r, wave.first_row() + r, *wave.rows.groups[static_cast<std::size_t>(next - offsets.begin()) - 1]);
    }
  });
}

void check(Exec const& exec, GroupedRows const& rows) {
  std::size_t const total = rows.in.size();
  EM_CHECK(rows.offsets.size() == rows.groups.size() + 1 && rows.offsets.back() == total && rows.out.size() == total,
           "groups " << rows.groups.size() << ", offsets " << rows.offsets.size() << ", rows " << total << ", outputs "
                     << rows.out.size());
  EM_CHECK(total <= exec.limits().max_rows, "R " << total);
  EM_CHECK(rows.wire == DType::f32 || rows.wire == DType::bf16, "wire " << name_of(rows.wire));
  for (FfnWeights const* ffn : rows.groups) {
    PackedLinear const& in = ffn->gate_up;
    PackedLinear const& out = ffn->down;
    EM_CHECK(in.w.k() == out.w.n() && std::max({in.w.k(), in.w.n(), out.w.k()}) <= exec.limits().max_columns &&
                 (in.w.n() == out.w.k() ? ffn->activation.kind != Activation::clamped_silu : ffn->gated()) &&
                 (in.bias.empty() || in.bias.size() == in.w.n()) && (out.bias.empty() || out.bias.size() == out.w.n()),
             "gate and up [" << in.w.n() << "," << in.w.k() << "], down [" << out.w.n() << "," << out.w.k()
                             << "], biases [" << in.bias.size() << "], [" << out.bias.size() << "], activation "
                             << static_cast<int>(ffn->activation.kind));
  }
}

// Row `in` of n numbers of the wire type as it meets a weight of this format, at `out`. wide: room for it in fp32.
void prepare_wire_row(Exec const& exec, WeightFormat const& format, DType wire, void const* in, std::size_t n,
                      float* wide, void* out) {
  if (wire == DType::f32) return prepare_row(exec, format, static_cast<float const*>(in), n, out);
  exec.table().widen_bf16(static_cast<std::uint16_t const*>(in), n, wide);
  prepare_row(exec, format, wide, n, out);
}

// The rows go there and come back one behind the other; every group of one shape is a call.
void grouped_ffn_on_device(Exec const& exec, GroupedRows const& rows) {
  Device& device = *exec.device();
  auto& scratch = exec.scratch();
  for (std::size_t g = 0; g < rows.groups.size();) {
    FfnWeights const& first = *rows.groups[g];
    auto const alike = [&](FfnWeights const& ffn) {
      return ffn.gate_up.w.n() == first.gate_up.w.n() && ffn.gate_up.w.k() == first.gate_up.w.k() &&
             ffn.down.w.k() == first.down.w.k() && ffn.activation == first.activation &&
             ffn.gate_up.w.format() == first.gate_up.w.format() && ffn.down.w.format() == first.down.w.format();
    };
    std::vector<DeviceExpert> experts;
    std::size_t end = g;
    for (; end < rows.groups.size() && alike(*rows.groups[end]); ++end) experts.push_back(on_device(*rows.groups[end]));
    std::size_t const row = rows.offsets[g];
    std::size_t const count = rows.offsets[end] - row;
    std::size_t const hidden = first.down.w.n();
    std::size_t const row_bytes = hidden * size_of(rows.wire);
    scratch.check_wire(count * hidden * sizeof(float));
    std::vector<std::uint32_t> expert_of(count);
    for (std::size_t i = g; i < end; ++i)
      std::fill(expert_of.begin() + static_cast<std::ptrdiff_t>(rows.offsets[i] - row),
                expert_of.begin() + static_cast<std::ptrdiff_t>(rows.offsets[i + 1] - row),
                static_cast<std::uint32_t>(i - g));
    for (std::size_t r = 0; r < count; ++r)
      std::memcpy(scratch.input.data() + r * row_bytes, rows.in[row + r], row_bytes);
    device.upload(scratch.wire_rows.data(), scratch.input.data(), count * row_bytes);
    MatrixView<float> const x(reinterpret_cast<float*>(scratch.wide_rows.data()), count, hidden);
    device.from_wire(rows.wire, scratch.wire_rows.data(), x);
    device.upload(scratch.experts.data(), experts.data(), experts.size() * sizeof(DeviceExpert));
    device.run_experts(layer_on_device(first, scratch.experts.span().first(experts.size()), rows.wire), x,
                       scratch.stage(0, std::span<std::uint32_t const>(expert_of)), 1, scratch.wire_rows.data());
    device.download(scratch.input.data(), scratch.wire_rows.data(), count * row_bytes);
    for (std::size_t r = 0; r < count; ++r)
      std::memcpy(rows.out[row + r], scratch.input.data() + r * row_bytes, row_bytes);
    g = end;
  }
}

// What becomes of a row; r: of scratch.
// H of the wire type -> input as it meets gate and up. Rows that do so as they are, are read in place.
void start_row(Exec const& exec, FfnWeights const& ffn, DType wire, std::byte const* in, std::size_t r) {
  auto& scratch = exec.scratch();
  WeightFormat const& format = ffn.gate_up.w.format();
  bool const in_place = meets_as_is(format, wire);
  if (!in_place)  // the row of outputs is free until `down`
    prepare_wire_row(exec, format, wire, in, ffn.gate_up.w.k(), scratch.output_row(r), scratch.input_row(r));
  scratch.x_rows[r] = in_place ? static_cast<void const*>(in) : scratch.input_row(r);
  scratch.y_rows[r] = scratch.hidden_row(r);
}
// hidden [2F] -> input [F] as it meets `down`
void activate_row(Exec const& exec, FfnWeights const& ffn, std::size_t r) {
  auto& scratch = exec.scratch();
  std::size_t const intermediate = ffn.down.w.k();
  float const* gate = scratch.hidden_row(r);
  float* activated = scratch.output_row(r);  // free until `down`
  exec.table().activate(ffn.activation, ffn.gated() ? gate : nullptr, ffn.gated() ? gate + intermediate : gate,
                        intermediate, activated);
  prepare_row(exec, ffn.down.w.format(), activated, intermediate, scratch.input_row(r));
  scratch.x_rows[r] = scratch.input_row(r);
  scratch.y_rows[r] = scratch.output_row(r);
}
// output [H] -> wire type: it is rounded at this one point
void end_row(Exec const& exec, FfnWeights const& ffn, DType wire, std::size_t r, std::byte* out) {
  to_wire_row(exec, exec.scratch().output_row(r), ffn.down.w.n(), wire, out);
}

// A group on one thread, whose rows stay in its nearer caches; no more rows than it has of its own. next: called before
// the last of its weights, gives the group that the thread runs then, or null.
template <class Next>
void run_group(Exec const& exec, GroupedRows const& rows, std::size_t g, std::size_t thread, Next const& next) {
  FfnWeights const& ffn = *rows.groups[g];
  std::size_t const first = rows.offsets[g];
  std::size_t const m = rows.offsets[g + 1] - first;
  std::size_t const own = exec.scratch().first_own_row(thread);
  for (std::size_t r = 0; r < m; ++r) start_row(exec, ffn, rows.wire, rows.in[first + r], own + r);
  GemmTile const down{job_of(exec, ffn.down, own, m), 0};
  run_alone(exec, job_of(exec, ffn.gate_up, own, m), &down);
  for (std::size_t r = 0; r < m; ++r) activate_row(exec, ffn, own + r);
  if (FfnWeights const* then = next()) {
    GemmTile const first_tile{job_of(exec, then->gate_up, own, m), 0};
    run_alone(exec, down.job, &first_tile);
  } else {
    run_alone(exec, down.job, nullptr);
  }
  for (std::size_t r = 0; r < m; ++r) end_row(exec, ffn, rows.wire, own + r, rows.out[first + r]);
}

// Groups [0, count) are run by whichever thread is free, each by one; it returns when there are none left.
class OwnGroups {
 public:
  OwnGroups(Exec const& exec, GroupedRows const& rows, std::size_t count) : exec_(exec), rows_(rows), count_(count) {}
  void work(std::size_t thread) {
    for (std::size_t g = take(); g < count_;) {
      std::size_t then = count_;
      run_group(exec_, rows_, g, thread, [&]() -> FfnWeights const* {
        then = take();
        return then < count_ ? rows_.groups[then] : nullptr;
      });
      g = then;
    }
  }

 private:
  std::size_t take() { return next_.fetch_add(1, std::memory_order_relaxed); }

  Exec const& exec_;
  GroupedRows const& rows_;
  std::size_t const count_;
  std::atomic<std::size_t> next_ = 0;
};

// All threads together, after each has done what there is of `own`.
void run_wave(Exec const& exec, Wave const& wave, OwnGroups& own) {
  DType const wire = wave.rows.wire;
  // gate and up: [R,H] -> hidden [R,2F]
  each_row(exec, wave, [&](std::size_t r, std::size_t of_all, FfnWeights const& ffn) {
    start_row(exec, ffn, wire, wave.rows.in[of_all], r);
  });
  auto const gates = jobs_of(exec, wave, &FfnWeights::gate_up);
  GemmRun const gate_up(exec, wave.end - wave.first, gates);
  exec.pool().parallel_for(exec.pool().num_threads(), [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t thread = begin; thread < end; ++thread) {
      own.work(thread);
      gate_up.work(thread);
    }
  });
  // activation: hidden [R,2F] -> input [R,F] as it meets `down`
  each_row(exec, wave, [&](std::size_t r, std::size_t, FfnWeights const& ffn) { activate_row(exec, ffn, r); });
  // down: [R,F] -> output [R,H]
  run_gemms(exec, wave.end - wave.first, jobs_of(exec, wave, &FfnWeights::down));
  each_row(exec, wave, [&](std::size_t r, std::size_t of_all, FfnWeights const& ffn) {
    end_row(exec, ffn, wire, r, wave.rows.out[of_all]);
  });
}

// How many groups threads run by themselves: from the first on, as many for each, but for the last ones, which all run
// together, so that all end at once. None where a group has more rows than a thread has of its own, or weights lie on
// several nodes, whose threads each have a part of every weight.
std::size_t num_own_groups(Exec const& exec, GroupedRows const& rows) {
  std::size_t const num_threads = exec.pool().num_threads();
  std::size_t const groups = rows.groups.size();
  if (exec.pool().plan().nodes().size() > 1) return 0;
  for (std::size_t g = 0; g < groups; ++g)
    if (rows.offsets[g + 1] - rows.offsets[g] > exec.scratch().own_rows) return 0;
  if (num_threads == 1) return groups - 1;
  return groups < 2 * num_threads ? 0 : (groups / num_threads - 1) * num_threads;
}

}  // namespace

DeviceExpert on_device(FfnWeights const& ffn) {
  return {.gate_up = ffn.gate_up.w.data(),
          .gate_up_bias = ffn.gate_up.bias.data(),
          .down = ffn.down.w.data(),
          .down_bias = ffn.down.bias.data()};
}

DeviceExperts layer_on_device(FfnWeights const& any, std::span<DeviceExpert const> table, DType wire) {
  return {.experts = table,
          .gate_up_storage = any.gate_up.w.format().storage,
          .down_storage = any.down.w.format().storage,
          .activation_rule = any.gate_up.w.format().activation,
          .hidden = any.down.w.n(),
          .intermediate = any.down.w.k(),
          .gated = any.gated(),
          .activation = any.activation,
          .wire = wire};
}

void experts_on_device(Exec const& exec, DeviceExperts const& layer, std::span<std::uint32_t const> rows,
                       std::span<std::uint32_t const> experts, std::byte const* in, std::byte* out) {
  EM_CHECK(rows.size() == experts.size(), rows.size() << " rows, " << experts.size() << " experts");
  Device& device = *exec.device();
  auto& scratch = exec.scratch();
  std::size_t const row_bytes = layer.hidden * size_of(layer.wire);
  for (std::size_t begin = 0; begin < rows.size();) {
    std::size_t const count = std::min(rows.size() - begin, exec.limits().max_rows);
    EM_CHECK(count * layer.hidden * sizeof(float) <= scratch.wide_rows.size(), count << " rows of " << layer.hidden);
    MatrixView<float> const x(reinterpret_cast<float*>(scratch.wide_rows.data()), count, layer.hidden);
    device.gather_from_wire(layer.wire, in, scratch.stage(0, rows.subspan(begin, count)), x);
    device.run_experts(layer, x, scratch.stage(1, experts.subspan(begin, count)), 1, out + begin * row_bytes);
    begin += count;
  }
}

void slots_on_device(Exec const& exec, DeviceExperts const& layer, std::span<std::uint32_t const> experts,
                     std::size_t experts_per_token, std::byte const* in, std::byte* out) {
  Device& device = *exec.device();
  auto& scratch = exec.scratch();
  std::size_t const tokens = experts.size() / experts_per_token;
  std::size_t const at_once = exec.limits().max_rows / experts_per_token;
  std::size_t const row_bytes = layer.hidden * size_of(layer.wire);
  EM_CHECK(at_once > 0, experts_per_token << " experts a token, at most " << exec.limits().max_rows << " rows");
  for (std::size_t begin = 0; begin < tokens;) {
    std::size_t const count = std::min(tokens - begin, at_once);
    EM_CHECK(count * layer.hidden * sizeof(float) <= scratch.wide_rows.size(), count << " rows of " << layer.hidden);
    MatrixView<float> const x(reinterpret_cast<float*>(scratch.wide_rows.data()), count, layer.hidden);
    std::size_t const slot = begin * experts_per_token;
    device.from_wire(layer.wire, in + begin * row_bytes, x);
    device.run_experts(layer, x, experts.subspan(slot, count * experts_per_token), experts_per_token,
                       out + slot * row_bytes);
    begin += count;
  }
}

void grouped_ffn(Exec const& exec, GroupedRows const& rows) {
  if (rows.in.empty()) return;
  check(exec, rows);
  if (exec.device()) return grouped_ffn_on_device(exec, rows);
  std::size_t const num_own = num_own_groups(exec, rows);
  OwnGroups own(exec, rows, num_own);
  std::size_t const room = kWaveBytes * exec.pool().num_threads();
  for (std::size_t first = num_own; first < rows.groups.size();) {
    FfnWeights const& ffn = *rows.groups[first];
    std::size_t const most_rows = room / ((ffn.gate_up.w.n() + ffn.down.w.n()) * sizeof(float));
    Wave wave{.rows = rows, .first = first, .end = first + 1};
    while (wave.end < rows.groups.size() && rows.offsets[wave.end + 1] - wave.first_row() <= most_rows) ++wave.end;
    run_wave(exec, wave, own);
    first = wave.end;
  }
}

}  // namespace expertmesh
