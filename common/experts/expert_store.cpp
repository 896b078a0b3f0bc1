#include "common/experts/expert_store.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <numeric>
#include <sstream>

#include "common/base/check.h"
#include "common/base/checksum.h"
#include "common/base/error.h"
#include "common/checkpoint/packed_cache.h"
#include "common/experts/packed_weights.h"

namespace expertmesh {
namespace {

// One expert to load.
struct Job {
  std::size_t layer_index;
  ExpertLayerSpec const* layer;
  std::uint32_t expert;  // global id
};

std::vector<Job> jobs_for(ExpertModelSpec const& model, HeldExperts const& held) {
  EM_CHECK(held.size() == model.layers.size(), held.size()
                                                   << " layers held, " << model.layers.size() << " in the model");
  std::vector<Job> jobs;
  for (std::size_t i = 0; i < held.size(); ++i)
    for (std::uint32_t const expert : held[i]) {
      EM_CHECK(expert < model.layers[i].experts.size(), "expert " << expert << " of layer " << model.layers[i].layer);
      jobs.push_back({i, &model.layers[i], expert});
    }
  return jobs;
}

// Everything that its packed bytes are a function of, beside the numbers of the checkpoint.
PackedCache::Entry cache_entry(ExpertLayerSpec const& layer, std::uint32_t expert, WeightFormat const& format) {
  std::ostringstream key;
  auto const weight = [&](char const* what, WeightSlice const& w) {
    key << what << ' ' << w.name << ' ' << w.stack << ' ' << w.index << ' ' << w.stored_rows << ' ' << w.first_row
        << ' ' << w.row_step << ' ' << w.transposed << ' ' << static_cast<int>(w.storage) << ' ' << w.block_rows << ' '
        << w.block_columns << ' ' << form_of(w) << '\n';
  };
  auto const vector = [&](char const* what, std::optional<VectorSlice> const& v) {
    if (v)
      key << what << ' ' << v->name << ' ' << v->stack << ' ' << v->index << ' ' << v->stored_length << ' ' << v->first
          << ' ' << v->step << '\n';
  };
  FfnTensors const& tensors = layer.experts[expert];
  key << "layout " << kPackedLayout << ' ' << name_of(format.storage) << ' ' << format.group_size << ' '
      << name_of(format.scale_type) << " hidden " << layer.hidden << " intermediate " << layer.intermediate << '\n';
  if (tensors.gate) weight("gate", *tensors.gate);
  weight("up", tensors.up);
  weight("down", tensors.down);
  vector("gate bias", tensors.gate_bias);
  vector("up bias", tensors.up_bias);
  vector("down bias", tensors.down_bias);
  return {.name = "layer-" + std::to_string(layer.layer) + "-expert-" + std::to_string(expert), .key = key.str()};
}

}  // namespace

HeldExperts all_experts(ExpertModelSpec const& model) {
  HeldExperts held;
  for (auto const& layer : model.layers) {
    held.emplace_back(layer.experts.size());
    std::iota(held.back().begin(), held.back().end(), 0U);
  }
  return held;
}

DispatchLimits dispatch_limits(ExpertModelSpec const& model, std::size_t tokens, std::size_t experts_per_token) {
  std::size_t most_held = 0;
  for (auto const& layer : model.layers) most_held = std::max(most_held, layer.experts.size());
  return DispatchLimits::of(tokens, experts_per_token, most_held);
}

std::size_t packed_expert_bytes(ExpertModelSpec const& model, HeldExperts const& held, Holder holder) {
  std::size_t bytes = 0;
  for (Job const& job : jobs_for(model, held)) bytes += packed_expert_bytes(*job.layer, model.weights, holder);
  return bytes;
}

std::size_t packed_expert_bytes(ExpertLayerSpec const& layer, WeightFormat const& format, Holder holder) {
  if (layer.experts.empty()) return 0;
  return packed_ffn_bytes(format, layer.experts.front(), {layer.hidden, layer.intermediate},
                          holder);  // all have the same parts
}

FfnWeights pack_expert(ExpertLayerSpec const& layer, std::uint32_t expert, WeightFormat const& format,
                       WeightSource const& source, WeightHome const& home) {
  WeightReader reader(source);
  return load_ffn(reader, format, layer.experts[expert], {layer.hidden, layer.intermediate}, layer.activation,
                  {.home = home});
}

LoadedExpert load_expert(ExpertLayerSpec const& layer, std::uint32_t expert, WeightFormat const& format,
                         WeightSource const& source, WeightHome const& home) {
  PackedCache const* const cache = home.device ? nullptr : source.packed_cache();
  if (!cache) return {.weights = pack_expert(layer, expert, format, source, home)};
  FfnTensors const& tensors = layer.experts[expert];
  FfnShape const shape{layer.hidden, layer.intermediate};
  if (auto const kept = cache->read(cache_entry(layer, expert, format), ffn_byte_counts(format, tensors, shape))) {
    FfnBytes bytes;
    std::ranges::copy(kept->parts, bytes.begin());
    LoadedExpert out{.weights = ffn_of(bytes, kept->keeper, format, tensors, shape, layer.activation, home),
                     .kept = true};
    // That of codes is of their numbers.
    if (!from_codes(out.weights.gate_up.w.format()) && !from_codes(out.weights.down.w.format()))
      out.checksum = kept->checksum;
    return out;
  }
  return {.weights = pack_expert(layer, expert, format, source, home)};
}

std::uint64_t checksum_of(FfnWeights const& expert) {
  std::uint64_t sum = 0;
  for (PackedLinear const* part : {&expert.gate_up, &expert.down}) {
    // Of the numbers as a processor has them, wherever and in whatever bits they are: so that any two can be compared.
    DeviceMemory* const device = part->w.device();
    PackedMatrix const downloaded = device ? part->w.copy_to_host() : PackedMatrix();
    PackedMatrix const& here = device ? downloaded : part->w;
    PackedMatrix const numbers = from_codes(here.format()) ? here.widened() : PackedMatrix();
    PackedMatrix const& w = from_codes(here.format()) ? numbers : here;
    sum = checksum_in_pieces(std::span(w.data(), w.size_bytes()), sum);
    std::vector<float> bias(part->bias.size());
    if (device && !bias.empty()) device->download(bias.data(), part->bias.data(), part->bias.size_bytes());
    sum = checksum_in_pieces(std::as_bytes(device ? std::span<float const>(bias) : part->bias.span()), sum);
  }
  return sum;
}

namespace {

// A device's kernels read all experts of a layer in one format.
void check_alike(ExpertModelSpec const& model) {
  for (ExpertLayerSpec const& layer : model.layers) {
    auto const formats = [&](std::size_t expert) {
      return packed_formats(model.weights, layer.experts[expert], {layer.hidden, layer.intermediate}, Holder::device);
    };
    for (std::size_t expert = 1; expert < layer.experts.size(); ++expert)
      if (formats(expert) != formats(0))
        throw ModelError("layer " + std::to_string(layer.layer) + ": the checkpoint has expert " +
                         std::to_string(expert) +
                         " in another format than expert 0; GPUs take all experts of a layer in one (processors each "
                         "in its own)");
  }
}

}  // namespace

ExpertStore::ExpertStore(ExpertModelSpec const& model, HeldExperts const& held, WeightSource const& source,
                         ThreadPool& pool, OnBytes const& on_bytes, SharedExperts* shared, WeightHome const& home)
    : held_(held) {
  if (home.device) check_alike(model);
  SharedExperts own;
  SharedExperts& experts = shared ? *shared : own;
  std::vector<Job> const jobs = jobs_for(model, held);
  std::size_t first = 0;
  first_in_model_.push_back(0);
  for (std::size_t i = 0; i < held.size(); ++i) {
    layers_.push_back(
        {.layer = model.layers[i].layer, .hidden = model.layers[i].hidden, .num_experts = held[i].size()});
    first_expert_.push_back(first);
    first += held[i].size();
    first_in_model_.push_back(first_in_model_.back() + model.layers[i].experts.size());
  }
  experts_.resize(jobs.size());
  kept_checksums_.resize(jobs.size());

  std::size_t const total_bytes = packed_expert_bytes(model, held, home.device ? Holder::device : Holder::processor);
  std::mutex mutex;
  std::exception_ptr failure;
  auto const hold = [&](std::size_t job, SharedExperts::Expert expert, std::uint64_t checksum = 0) {
    std::lock_guard const lock(mutex);
    if (failure) return;
    kept_checksums_[job] = checksum;
    resident_bytes_ += expert->size_bytes();
    experts_[job] = std::move(expert);
    on_bytes(resident_bytes_, total_bytes);
  };
  std::vector<char> to_keep(jobs.size());  // not in the cache
  // Those that others are loading, unless it is the last look: then they are loaded here, too.
  std::vector<std::size_t> claimed_by_others;
  auto const look = [&](std::size_t place, bool last) {
    Job const& job = jobs[place];
    auto [expert, claimed] = experts.find_or_claim(job.layer_index, job.expert);
    if (expert) return hold(place, std::move(expert));
    if (!claimed && !last) {
      std::lock_guard const lock(mutex);
      claimed_by_others.push_back(place);
      return;
    }
    try {
      LoadedExpert loaded = load_expert(*job.layer, job.expert, model.weights, source, home);
      if (!loaded.kept) to_keep[place] = 1;
      hold(place,
           experts.enter(job.layer_index, job.expert, std::make_shared<FfnWeights const>(std::move(loaded.weights))),
           loaded.checksum);
    } catch (...) {
      if (claimed) experts.give_up(job.layer_index, job.expert);
      throw;
    }
  };
  auto const look_for = [&](std::vector<std::size_t> const& places, bool last) {
    std::atomic<std::size_t> next = 0;  // whoever is free takes it
    std::atomic<bool> failed = false;
    pool.parallel_for(std::min(places.size(), pool.num_threads()), [&](std::size_t, std::size_t, std::size_t) {
      for (std::size_t i = 0; !failed && (i = next++) < places.size();) {
        try {
          look(places[i], last);
        } catch (...) {
          std::lock_guard const lock(mutex);
          if (!failure) failure = std::current_exception();
          failed = true;
        }
      }
    });
    if (failure) std::rethrow_exception(failure);
  };
  std::vector<std::size_t> all(jobs.size());
  std::iota(all.begin(), all.end(), std::size_t{0});
  look_for(all, false);
  look_for(std::vector<std::size_t>(claimed_by_others), true);

  PackedCache* const cache = home.device ? nullptr : source.packed_cache();
  for (std::size_t place = 0; cache && place < jobs.size(); ++place) {
    if (to_keep[place] == 0) continue;
    auto const parts = bytes_of(*experts_[place]);
    cache->keep(cache_entry(*jobs[place].layer, jobs[place].expert, model.weights), experts_[place],
                {parts.begin(), parts.end()});
  }
}

std::vector<std::vector<std::uint64_t>> ExpertStore::checksums(ThreadPool& pool) const {
  std::vector<std::uint64_t> sums(experts_.size());
  pool.parallel_for(sums.size(), [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t i = begin; i < end; ++i)
      sums[i] = kept_checksums_[i] != 0 ? kept_checksums_[i] : checksum_of(*experts_[i]);
  });
  std::vector<std::vector<std::uint64_t>> of_layers;
  for (auto next = sums.begin(); auto const& layer : held_) {
    of_layers.emplace_back(next, next + static_cast<std::ptrdiff_t>(layer.size()));
    next += static_cast<std::ptrdiff_t>(layer.size());
  }
  return of_layers;
}

}  // namespace expertmesh
