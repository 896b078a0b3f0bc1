// A model ready to run steps, in this process.
#pragma once
#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include "coordinator/engine/step_memory.h"
#include "coordinator/engine/step_runner.h"
#include "coordinator/experts/remote_experts.h"
#include "coordinator/experts/resident_experts.h"
#include "coordinator/model/model_plan.h"
#include "coordinator/scheduler/scheduler.h"

namespace expertmesh::test {

class NoExperts final : public Experts {
 public:
  [[nodiscard]] bool wants_routing_on_host() const override { return false; }
  Exchange dispatch(std::uint32_t, MatrixView<float const>, RoutingView) override { return {}; }
  void progress() override {}
  void wake() override {}
  void idle() override {}

 protected:
  bool complete(Exchange) override { return true; }
  void wait(Exchange, std::coroutine_handle<>) override {}
  void finish(Exchange, MatrixView<float>) override {}
};

// Where the experts of a rig with a device are.
enum class ExpertsAt { device, group_on_device };

// Types of the numbers of rows and weights, and of the KV cache; what weights become in their place.
struct Numerics {
  Numerics(DType all) : rows(all), kv(all) {}  // NOLINT(google-explicit-constructor): the same everywhere
  Numerics(DType of_rows, DType of_kv) : rows(of_rows), kv(of_kv) {}
  Numerics(DType all, Quantization of_weights) : rows(all), kv(all), quantization(of_weights) {}
  DType rows, kv;
  Quantization quantization = Quantization::none;
  [[nodiscard]] WeightFormat weights() const { return weight_format_of(rows, quantization); }
};
inline std::ostream& operator<<(std::ostream& out, Numerics const& n) {
  return out << name_of(n.rows) << ", KV cache " << name_of(n.kv) << ", weights " << name_of(n.weights().storage);
}

struct ModelRig {
  static constexpr std::size_t kMaxTokens = 128;
  static constexpr std::size_t kMaxLogitRows = 16;

  ModelRig(ModelSpec model, std::filesystem::path const& dir, Numerics numerics, std::size_t threads, Isa isa,
           std::size_t blocks_of_each_group = 64, Device* device = nullptr, ExpertsAt experts_at = ExpertsAt::device)
      : ModelRig(model, dir, numerics, threads, isa,
                 std::vector<std::size_t>(kv_cache_specs(model, numerics.kv).size(), blocks_of_each_group), kMaxTokens,
                 device, experts_at) {}
  // kv_blocks: [KV groups]; max_tokens: of a step, and of what the encoder takes at once
  ModelRig(ModelSpec model, std::filesystem::path const& dir, Numerics numerics, std::size_t threads, Isa isa,
           std::vector<std::size_t> kv_blocks, std::size_t max_tokens = kMaxTokens, Device* device = nullptr,
           ExpertsAt experts_at = ExpertsAt::device)
      : spec(std::move(model)),
        weights(open_checkpoint(dir)),
        pool(threads),
        exec(isa, pool, exec_limits(spec, sizes(max_tokens), experts_at != ExpertsAt::device), device),
        blocks(std::move(kv_blocks)) {
    weights->verify(expected_tensors(spec));
    DType const dtype = numerics.rows;
    auto const experts_spec = expert_model_spec(spec, numerics.weights(), dtype);
    if (!experts_spec.layers.empty() && device && experts_at == ExpertsAt::device)
      resident.emplace(experts_spec, *weights, exchange_shape(spec, kMaxTokens).rows,
                       exchange_shape(spec, kMaxTokens).experts_per_row, exec, [](auto, auto) {});
    else if (!experts_spec.layers.empty())
      remote = make_local_experts(experts_spec, *weights,
                                  {.experts_per_token = exchange_shape(spec, kMaxTokens).experts_per_row,
                                   .max_tokens = exchange_shape(spec, kMaxTokens).rows,
                                   .trace = &trace},
                                  exec, [](auto, auto) {});
    decoder.emplace(spec, *weights,
                    DecoderOptions{.max_tokens = max_tokens,
                                   .max_input = sizes(max_tokens).length,
                                   .weights = numerics.weights(),
                                   .on_bytes_loaded = [](auto) {},
                                   .device = device});
    groups = kv_cache_specs(spec, numerics.kv);
    kv.emplace(spec, groups, blocks, device);
    make_runner(max_tokens, MicroBatchRule::one);
  }

  // Steps run in so many micro-batches from now on.
  void make_runner(std::size_t max_tokens, MicroBatchRule rule) {
    runner.emplace(spec,
                   StepRunnerLimits{.max_tokens = max_tokens,
                                    .max_logit_rows = kMaxLogitRows,
                                    .record_routing = true,
                                    .micro_batches = rule,
                                    .trace = &trace},
                   exec, *decoder, *kv,
                   resident ? static_cast<Experts&>(*resident)
                   : remote ? static_cast<Experts&>(*remote)
                            : no_experts);
  }

  static StepSizes sizes(std::size_t max_tokens) {
    return {.tokens = std::max(max_tokens, kMaxTokens), .logit_rows = kMaxLogitRows, .sequences = 8, .length = 1024};
  }

  ModelSpec spec;
  std::unique_ptr<WeightSource> weights;
  ThreadPool pool;
  Exec exec;
  TraceLane trace{1 << 10};  // of the thread that runs steps
  NoExperts no_experts;
  std::unique_ptr<RemoteExperts> remote;
  std::optional<ResidentExperts> resident;
  std::optional<Decoder> decoder;
  std::vector<KvCacheSpec> groups;
  std::vector<std::size_t> blocks;  // [KV groups]
  std::optional<KvCache> kv;
  std::optional<StepRunner> runner;
};

}  // namespace expertmesh::test
