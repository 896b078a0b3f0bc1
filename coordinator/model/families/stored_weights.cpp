#include "coordinator/model/families/stored_weights.h"

#include <algorithm>
#include <cmath>
#include <string_view>
#include <utility>

#include "common/base/error.h"
#include "common/checkpoint/strict_json.h"

namespace expertmesh {
namespace {

// Of tools that quantise, about how they did it.
void skip_how_it_was_made(ConfigReader& config) {
  config.without_effect({"amp",
                         "autoround_version",
                         "backend",
                         "batch_size",
                         "cache_block_outputs",
                         "damp_auto_increment",
                         "damp_percent",
                         "dataset",
                         "disable_exllama",
                         "do_fuse",
                         "enable_minmax_tuning",
                         "enable_norm_bias_tuning",
                         "enable_quanted_input",
                         "exllama_config",
                         "fuse_max_seq_len",
                         "gradient_accumulate_steps",
                         "iters",
                         "low_gpu_mem_usage",
                         "lr",
                         "max_input_length",
                         "meta",
                         "minmax_lr",
                         "model_file_base_name",
                         "model_name_or_path",
                         "model_seqlen",
                         "module_name_preceding_first_block",
                         "modules_to_fuse",
                         "mse",
                         "nsamples",
                         "offload_to_disk",
                         "offload_to_disk_path",
                         "pack_impl",
                         "pad_token_id",
                         "provider",
                         "quantizer",
                         "seqlen",
                         "static_groups",
                         "tokenizer",
                         "true_sequential",
                         "use_cuda_fp16",
                         "use_exllama"});
}

// 0 for -1: all of K.
std::size_t read_group_size(ConfigReader& config, std::size_t otherwise) {
  double const size = config.number_or("group_size", otherwise == 0 ? -1 : static_cast<double>(otherwise));
  if (size == -1) return 0;
  if (size < 1 || size > static_cast<double>(kMostCount) || size != std::floor(size))
    config.refuse("group_size", "expected a whole number of at least 1, or -1");
  return static_cast<std::size_t>(size);
}

// "checkpoint_format", "format" and "version" of different tools' spellings; all that are there have to agree.
std::string read_format(ConfigReader& config, std::vector<std::string_view> const& fields, std::string_view fallback) {
  std::string format;
  for (std::string_view const field : fields) {
    if (!config.has(field)) continue;
    std::string text = config.text(field);
    std::ranges::transform(text, text.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c; });
    if (!format.empty() && text != format) config.refuse(field, "'" + text + "' and '" + format + "' differ");
    format = text;
  }
  return format.empty() ? std::string(fallback) : format;
}

void check_word(ConfigReader& config) {
  if (auto const type = config.text_or("pack_dtype", "int32"); type != "int32")
    config.refuse("pack_dtype", "'" + type + "' is not supported");
}

std::size_t read_bits(ConfigReader& config, std::vector<std::size_t> const& known) {
  std::size_t const bits = config.count("bits");
  if (std::ranges::find(known, bits) == known.end())
    config.refuse("bits", std::to_string(bits) + " bits are not supported");
  return bits;
}

// "re:" and a regex, the class of all linear modules, or a name.
ModulePattern target(ConfigReader const& config, std::string_view field, std::string const& text) {
  constexpr std::string_view kRegex = "re:";
  if (text == "Linear") return {PatternKind::everything, text};
  if (!text.starts_with(kRegex)) return {PatternKind::name, text};
  try {
    return {PatternKind::regex, text.substr(kRegex.size())};
  } catch (ModelError const& error) {
    config.refuse(field, error.what());
  }
}

// ---- compressed-tensors
WeightSlice form_of_floats(ConfigReader& weights, std::string const& strategy, std::size_t group_size) {
  WeightSlice form{.storage = WeightStorage::fp8_scaled};
  if (!weights.flag_or("symmetric", true)) weights.refuse("symmetric", "8-bit floats with zero points");
  if (strategy == "tensor") {
    form.block_rows = form.block_columns = 0;
  } else if (strategy == "channel") {
    form.block_rows = 1;
    form.block_columns = 0;
  } else if (strategy == "group") {
    form.block_rows = 1;
    form.block_columns = group_size;
  } else if (strategy == "block") {
    auto const block = weights.indices("block_structure");
    if (block.size() != 2 || block[0] == 0 || block[1] == 0)
      weights.refuse("block_structure", "expected two positive numbers: rows and columns of a block");
    form.block_rows = block[0];
    form.block_columns = block[1];
  } else {
    weights.refuse("strategy", "'" + strategy + "' is not supported for weights");
  }
  return form;
}

bool read_activation_order(ConfigReader& weights, std::string const& strategy) {
  std::string order = weights.is_text("actorder")          ? weights.text("actorder")
                      : weights.flag_or("actorder", false) ? "group"
                                                           : "weight";
  if (order == "dynamic") order = "group";
  if (order == "static") order = "weight";
  if (order != "group" && order != "weight") weights.refuse("actorder", "'" + order + "' is not supported");
  if (order == "group" && strategy != "group") weights.refuse("actorder", "needs groups");
  return order == "group";
}

WeightSlice form_of_integers(ConfigReader& weights, std::string const& strategy, std::size_t group_size, bool packed) {
  WeightSlice form{.storage = WeightStorage::integers};
  StoredIntegers& integers = form.integers;
  std::size_t const bits = weights.count("num_bits");
  if (bits != 8 && bits != 4) weights.refuse("num_bits", std::to_string(bits) + " bits are not supported");
  integers.layout = packed ? IntegerLayout::packed : IntegerLayout::bytes;
  integers.bits = packed ? bits : 8;  // codes of 4 bits in a byte are numbers like others
  integers.group_size = group_size;
  integers.zero_points = weights.flag_or("symmetric", true) ? ZeroPoints::middle : ZeroPoints::stored;
  integers.has_group_index = read_activation_order(weights, strategy);
  integers.one_scale = strategy == "tensor";
  if (strategy != "group" && strategy != "channel" && (packed || strategy != "tensor"))
    weights.refuse("strategy", "'" + strategy + "' is not supported for weights in this format");
  return form;
}

// config_groups.X.weights
WeightSlice read_weights(ConfigReader& group, std::string const& format) {
  auto weights = group.object("weights");
  if (!weights) group.refuse("weights", "missing: modules of which only activations are quantised are not supported");
  std::size_t const group_size = read_group_size(*weights, 0);
  std::string const strategy = weights->text_or("strategy", group_size != 0              ? "group"
                                                            : weights->has("group_size") ? "channel"
                                                                                         : "tensor");
  if ((strategy == "group") != (group_size != 0))
    weights->refuse("group_size", "does not fit strategy '" + strategy + "'");
  weights->must_be_off("dynamic");
  std::string const type = weights->text_or("type", "int");
  WeightSlice form;
  if (type == "float" && (format == "float-quantized" || format == "naive-quantized")) {
    if (weights->count("num_bits") != 8) weights->refuse("num_bits", "floats of 8 bits alone are supported");
    weights->must_be_off("actorder");
    form = form_of_floats(*weights, strategy, group_size);
  } else if (type == "int" && format != "float-quantized") {
    form = form_of_integers(*weights, strategy, group_size, format == "pack-quantized");
  } else {
    weights->refuse("type", "'" + type + "' is not supported in format '" + format + "'");
  }
  if (strategy != "block") weights->must_be_off("block_structure");
  weights->without_effect({"observer", "observer_kwargs", "scale_dtype", "zp_dtype"});
  weights->finish();
  return form;
}

void check_activations(ConfigReader& group) {
  group.must_be_off("output_activations");
  auto activations = group.object("input_activations");
  if (!activations) return;
  // What is quantised as it comes needs nothing of the checkpoint.
  if (!activations->flag_or("dynamic", false))
    activations->refuse("dynamic", "activations with scales of the checkpoint are not supported");
}

void check_sparsity(ConfigReader& config) {
  auto sparsity = config.object("sparsity_config");
  if (!sparsity) return;
  if (std::string const format = sparsity->text_or("format", "dense"); format != "dense")
    sparsity->refuse("format", "'" + format + "' is not supported");
}

}  // namespace

StoredWeights::StoredWeights(ConfigReader& config) {
  auto quantisation = config.object("quantization_config");
  if (!quantisation) return;
  std::string const method = quantisation->text("quant_method");
  if (method == "fp8") {
    read_fp8(*quantisation);
  } else if (method == "mxfp4") {
    keep(*quantisation, {"modules_to_not_convert", "ignored_layers"}, PatternKind::components);
    quantisation->without_effect({"dequantize"});
    add_all({.storage = WeightStorage::mxfp4});
  } else if (method == "awq") {
    read_awq(*quantisation);
  } else if (method == "gptq") {
    read_gptq(*quantisation);
  } else if (method == "compressed-tensors") {
    read_compressed(*quantisation);
  } else {
    quantisation->refuse("quant_method", "quantisation by '" + method + "' is not supported");
  }
  quantisation->finish();
}

void StoredWeights::keep(ConfigReader& config, std::vector<std::string_view> const& fields, PatternKind kind) {
  for (auto const field : fields)
    for (std::string& pattern : config.texts(field)) rules_.push_back({{kind, std::move(pattern)}, {}});
}

void StoredWeights::add_all(WeightSlice form) {
  rules_.push_back({{PatternKind::everything, ""}, std::move(form)});
}

void StoredWeights::read_fp8(ConfigReader& config) {
  if (std::string const format = config.text_or("fmt", "e4m3"); format != "e4m3")
    config.refuse("fmt", "8-bit floats of format '" + format + "' are not supported");
  if (std::string const scheme = config.text_or("activation_scheme", "dynamic"); scheme != "dynamic")
    config.refuse("activation_scheme", "'" + scheme + "' is not supported");
  auto const block = config.indices("weight_block_size");
  if (block.size() != 2 || block[0] == 0 || block[1] == 0)
    config.refuse("weight_block_size", "expected two positive numbers: rows and columns of a block");
  if (auto const scale = config.text_or("scale_fmt", "ue8m0"); scale != "ue8m0" && scale != "float")
    config.refuse("scale_fmt", "'" + scale + "' is not supported");
  keep(config, {"modules_to_not_convert", "ignored_layers"}, PatternKind::components);
  config.without_effect({"dequantize"});
  add_all({.storage = WeightStorage::fp8_blocks, .block_rows = block[0], .block_columns = block[1]});
}

void StoredWeights::read_awq(ConfigReader& config) {
  WeightSlice form{.storage = WeightStorage::integers};
  form.integers = {.layout = IntegerLayout::awq, .bits = read_bits(config, {4})};
  form.integers.group_size = read_group_size(config, 128);
  if (auto const format = read_format(config, {"version", "checkpoint_format", "format"}, "gemm"); format != "gemm")
    config.refuse("version", "'" + format + "' is not supported");
  if (!config.flag_or("zero_point", true)) config.refuse("zero_point", "false is not supported");
  for (auto const* field : {"desc_act", "lm_head", "dynamic"}) config.must_be_off(field);
  config.without_effect({"sym"});  // of zero points that are stored either way
  check_word(config);
  skip_how_it_was_made(config);
  keep(config, {"modules_to_not_convert"}, PatternKind::part);
  add_all(std::move(form));
}

void StoredWeights::read_gptq(ConfigReader& config) {
  WeightSlice form{.storage = WeightStorage::integers};
  form.integers = {.layout = IntegerLayout::gptq, .bits = read_bits(config, {4, 8}), .has_group_index = true};
  form.integers.group_size = read_group_size(config, 128);
  std::string const format = read_format(config, {"checkpoint_format", "format"}, "gptq");
  if (format != "gptq" && format != "gptq_v2") config.refuse("checkpoint_format", "'" + format + "' is not supported");
  form.integers.zero_points = format == "gptq_v2" ? ZeroPoints::stored : ZeroPoints::stored_minus_one;
  if (auto const method = config.text_or("method", "gptq"); method != "gptq")
    config.refuse("method", "'" + method + "' is not supported");
  for (auto const* field : {"is_marlin_format", "adapter", "modules_in_block_to_quantize"}) config.must_be_off(field);
  if (auto const blocks = config.text_or("block_name_to_quantize", "model.layers"); blocks != "model.layers")
    config.refuse("block_name_to_quantize", "'" + blocks + "' is not supported");
  // Zero points and group index are stored whatever these say.
  (void)config.flag_or("sym", true);
  (void)config.flag_or("desc_act", false);
  config.without_effect({"act_group_aware"});
  head_like_the_others_ = config.flag_or("lm_head", false);
  check_word(config);
  skip_how_it_was_made(config);
  if (auto dynamic = config.object("dynamic"))
    for (std::string const& key : dynamic->fields()) {
      bool const without = key.starts_with("-:");
      std::string const regex = without || key.starts_with("+:") ? key.substr(2) : key;
      auto overrides = dynamic->object(key);
      Rule rule{target(*dynamic, key, "re:" + regex), {}};
      if (!without) rule.form = form;
      if (rule.form && overrides) {
        if (overrides->has("bits")) rule.form->integers.bits = read_bits(*overrides, {4, 8});
        if (overrides->has("group_size")) rule.form->integers.group_size = read_group_size(*overrides, 128);
        overrides->without_effect({"sym", "desc_act", "act_group_aware"});
        skip_how_it_was_made(*overrides);
        overrides->finish();
      }
      rules_.push_back(std::move(rule));
    }
  num_unordered_ = rules_.size();
  add_all(std::move(form));
}

void StoredWeights::read_compressed(ConfigReader& config) {
  std::string const format = config.text("format");
  if (auto const status = config.text_or("quantization_status", "compressed"); status != "compressed")
    config.refuse("quantization_status", "'" + status + "' is not supported");
  for (auto const* field : {"kv_cache_scheme", "transform_config"}) config.must_be_off(field);
  check_sparsity(config);
  config.without_effect({"global_compression_ratio", "version", "run_compressed"});
  for (std::string const& text : config.texts("ignore")) rules_.push_back({target(config, "ignore", text), {}});
  // Names go before regexes, these before classes; of several regexes the first one of the alphabet counts.
  std::vector<Rule> names;
  std::vector<Rule> regexes;
  std::vector<Rule> classes;
  auto groups = config.object("config_groups");
  if (!groups) config.refuse("config_groups", "missing");
  for (std::string const& name : groups->fields()) {
    auto group = groups->object(name);
    if (!group) continue;
    std::string const own = group->text_or("format", format);
    if (own != "pack-quantized" && own != "int-quantized" && own != "naive-quantized" && own != "float-quantized")
      (group->has("format") ? *group : config).refuse("format", "'" + own + "' is not supported");
    WeightSlice const form = read_weights(*group, own);
    check_activations(*group);
    auto const targets = group->texts("targets");
    if (targets.empty()) group->refuse("targets", "names no modules");
    for (std::string const& text : targets) {
      if (text != "Linear" && !text.empty() && text.front() >= 'A' && text.front() <= 'Z')
        group->refuse("targets", "modules of class '" + text + "' are not known here");
      auto& list = text == "Linear" ? classes : text.starts_with("re:") ? regexes : names;
      list.push_back({target(*group, "targets", text), form});
    }
    group->finish();
  }
  std::ranges::stable_sort(regexes, {}, [](Rule const& rule) { return rule.modules.text(); });
  for (auto* list : {&names, &regexes, &classes}) std::ranges::move(*list, std::back_inserter(rules_));
  head_like_the_others_ = true;
}

std::optional<WeightSlice> StoredWeights::form_of(std::string const& module) const {
  auto const matches = [&](Rule const& rule) { return rule.modules.matches(module); };
  auto const first = std::ranges::find_if(rules_, matches);
  if (first == rules_.end()) return {};
  std::size_t const index = static_cast<std::size_t>(first - rules_.begin());
  for (std::size_t other = index + 1; other < num_unordered_; ++other)
    if (matches(rules_[other]) && rules_[other].form != first->form)
      throw ModelError("config.json: quantization_config: field 'dynamic': " + in_quotes(first->modules.text()) +
                       " and " + in_quotes(rules_[other].modules.text()) + " say different things of " +
                       in_quotes(module));
  return first->form;
}

WeightStorage StoredWeights::storage() const {
  auto const rule = std::ranges::find_if(rules_, [](Rule const& r) { return r.form.has_value(); });
  return rule == rules_.end() ? WeightStorage::numbers : rule->form->storage;
}

WeightSlice StoredWeights::weight(std::string const& module) const {
  WeightSlice slice = form_of(module).value_or(WeightSlice{});
  if (slice.storage == WeightStorage::mxfp4) slice = {};  // of experts alone, which their family looks after
  slice.name = slice.storage == WeightStorage::integers ? module : module + ".weight";
  return slice;
}

WeightSlice StoredWeights::head(std::string const& module) const {
  return head_like_the_others_ ? weight(module) : WeightSlice{module + ".weight"};
}

}  // namespace expertmesh
