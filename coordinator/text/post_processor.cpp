#include "coordinator/text/post_processor.h"

#include "coordinator/text/json_fields.h"

namespace expertmesh {
namespace {

std::string const kPostProcessor = "post_processor";

PostProcessor template_of(Json const& spec) {
  PostProcessor out;
  auto const& tokens = json_part(spec, "special_tokens", kPostProcessor);
  bool seen_text = false;
  for (auto const& item : json_part(spec, "single", kPostProcessor)) {
    if (item.is_object() && item.contains("Sequence")) {
      if (seen_text) tokenizer_error(kPostProcessor, "the text stands twice in the template");
      auto const id = json_field_or<std::string>(item["Sequence"], "id", "A", kPostProcessor);
      if (id != "A") tokenizer_error(kPostProcessor, "the template for one text names text '" + id + "'");
      seen_text = true;
      continue;
    }
    auto const name = json_field<std::string>(json_part(item, "SpecialToken", kPostProcessor), "id", kPostProcessor);
    auto& side = seen_text ? out.after : out.before;
    for (auto const& id : json_part(json_part(tokens, name.c_str(), kPostProcessor), "ids", kPostProcessor))
      side.push_back(json_value<TokenId>(id, "ids", kPostProcessor));
  }
  if (!seen_text) tokenizer_error(kPostProcessor, "the template leaves out the text");
  return out;
}

// ["</s>", 2]
TokenId token_of(Json const& spec, char const* field) {
  auto const& pair = json_part(spec, field, kPostProcessor);
  if (!pair.is_array() || pair.size() != 2)
    tokenizer_error(kPostProcessor, std::string("field '") + field + "' is no pair");
  return json_value<TokenId>(pair[1], field, kPostProcessor);
}

}  // namespace

PostProcessor PostProcessor::from_json(Json const& spec) {
  PostProcessor out;
  if (spec.is_null()) return out;
  auto const type = json_field<std::string>(spec, "type", kPostProcessor);
  if (type == "Sequence") {
    auto const& steps = json_part(spec, "processors", kPostProcessor);
    if (!steps.is_array()) tokenizer_error(kPostProcessor, "field 'processors' is not a list");
    for (auto const& step : steps) {  // each goes around what those before it have made
      PostProcessor outer = from_json(step);
      outer.before.insert(outer.before.end(), out.before.begin(), out.before.end());
      out.after.insert(out.after.end(), outer.after.begin(), outer.after.end());
      out.before = std::move(outer.before);
    }
  } else if (type == "TemplateProcessing") {
    out = template_of(spec);
  } else if (type == "RobertaProcessing" || type == "BertProcessing") {
    out = {{token_of(spec, "cls")}, {token_of(spec, "sep")}};
  } else if (type != "ByteLevel") {  // ByteLevel moves offsets only
    tokenizer_error(kPostProcessor, "kind '" + type + "' is not supported");
  }
  return out;
}

}  // namespace expertmesh
