// tokenizer.json's `post_processor`: the tokens around a text that is encoded with add_special_tokens.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <vector>

#include "common/base/strong_id.h"

namespace expertmesh {

struct PostProcessor {
  std::vector<TokenId> before;
  std::vector<TokenId> after;
  static PostProcessor from_json(nlohmann::json const& spec);  // null: none. ModelError for an unknown kind.
};

}  // namespace expertmesh
