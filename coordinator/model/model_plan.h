// Parameters and bytes of a model, before any weight is read.
#pragma once
#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/model/layer_cost.h"
#include "coordinator/model/model_spec.h"

namespace expertmesh {

// What becomes of the weights of linears and experts and of the LM head while they are loaded. Embeddings, norms and
// routers stay.
enum class Quantization : std::uint8_t { none, int8, int4 };
std::string_view name_of(Quantization quantization);  // "none", "int8", "int4": as --quantization has it

struct ModelPlan {
  std::size_t parameters = 0;
  std::size_t routed_parameters = 0;      // of all routed experts
  std::size_t active_parameters = 0;      // a token uses: everything not routed + routed x K/E (embeddings included)
  std::size_t embedding_bytes = 0;        // as stored
  std::size_t coordinator_bytes = 0;      // weights of the coordinator without experts: the embedding, the rest packed
  std::vector<std::size_t> expert_bytes;  // [MoE layers] of one packed expert
  std::vector<std::size_t>
      worker_bytes;  // [N] packed experts of each worker; N = 1 is also what the coordinator holds itself
  std::size_t kv_bytes_per_token = 0;
  std::size_t cross_kv_bytes_per_token = 0;  // of an encoder's input
};
ModelPlan plan_model(ModelSpec const& spec, WeightFormat weights, DType kv_dtype, std::size_t num_workers,
                     Holders const& holders = {});

// What `expertmesh info` prints: sizes, memory, files, and one line "would be refused  …" for each thing that is wrong.
// kv_dtype: none: as the rows. Never throws for a bad directory.
struct InfoReport {
  std::string text;
  std::string json;       // the same, with what each part of a layer asks (model_facts.h)
  bool servable = false;  // nothing would be refused
};
struct ServedAs {
  std::optional<DType> dtype{};
  Quantization quantization = Quantization::none;
  std::optional<DType> kv_dtype{};
  Holder holder = Holder::processor;  // of all weights
};
InfoReport describe_model(std::filesystem::path const& model_dir, std::size_t num_workers, ServedAs const& served = {});

// --dtype auto: float32 for a float32 checkpoint, else bfloat16.
DType numerics_dtype(ModelSpec const& spec, std::optional<DType> wanted);
// dtype: of the numbers where there is none.
WeightFormat weight_format_of(DType dtype, Quantization quantization = Quantization::none);

}  // namespace expertmesh
