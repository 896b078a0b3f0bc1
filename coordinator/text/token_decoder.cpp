#include "coordinator/text/token_decoder.h"

#include "coordinator/text/byte_alphabet.h"
#include "coordinator/text/json_fields.h"
#include "coordinator/text/normalizer.h"
#include "coordinator/text/utf8.h"

namespace expertmesh {

TokenDecoder::TokenDecoder(Json const& spec) {
  if (spec.is_null())
    joins_with_spaces_ = true;
  else
    add(spec);
  if (byte_level_ && (byte_fallback_ || !replacements_.empty() || strip_start_ > 0))
    tokenizer_error("decoder", "ByteLevel together with other steps is not supported");
}

void TokenDecoder::add(Json const& spec) {
  std::string const where = "decoder";
  auto const type = json_field<std::string>(spec, "type", where);
  if (type == "Sequence") {
    for (auto const& step : json_part(spec, "decoders", where)) add(step);
  } else if (type == "ByteLevel") {
    byte_level_ = true;
  } else if (type == "ByteFallback") {
    byte_fallback_ = true;
  } else if (type == "Fuse") {
    fused_ = true;
  } else if (type == "Replace") {
    auto const& pattern = json_part(spec, "pattern", where);
    if (!pattern.contains("String") || byte_fallback_ || fused_)
      tokenizer_error(where, "only a literal Replace before the other steps is supported");
    replacements_.emplace_back(json_field<std::string>(pattern, "String", where),
                               json_field<std::string>(spec, "content", where));
  } else if (type == "Strip") {
    if (!fused_ || json_field_or<std::size_t>(spec, "stop", 0, where) != 0)
      tokenizer_error(where, "only a Strip of the start after Fuse is supported");
    strip_content_ = json_field<std::string>(spec, "content", where);
    if (strip_content_.empty()) tokenizer_error(where, "Strip of an empty string");
    strip_start_ = json_field_or<std::size_t>(spec, "start", 0, where);
  } else if (type == "Metaspace") {
    replacements_.emplace_back(json_field<std::string>(spec, "replacement", where), " ");
    strip_content_ = " ";
    strip_start_ = json_field_or<std::string>(spec, "prepend_scheme", "always", where) == "never" ? 0 : 1;
  } else {
    tokenizer_error(where, "kind '" + type + "' is not supported");
  }
}

std::string TokenDecoder::replaced_token(std::string token) const {
  for (auto const& [what, with] : replacements_) token = replaced(token, what, with);
  return token;
}

bool TokenDecoder::is_byte_token(std::string const& token, char& byte) const {
  if (!byte_fallback_ || token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return false;
  auto const digit = [](char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
  };
  int const high = digit(token[3]);
  int const low = digit(token[4]);
  if (high < 0 || low < 0) return false;
  byte = static_cast<char>(high * 16 + low);
  return true;
}

std::string TokenDecoder::bytes_of(std::string const& token) const {
  if (byte_level_) return from_byte_alphabet(token).value_or(token);
  if (char byte = 0; is_byte_token(token, byte)) return {byte};
  return replaced_token(token);
}

std::string TokenDecoder::whole(std::vector<std::string> const& tokens) const {
  std::string text;
  if (byte_level_) {
    std::string bytes;
    for (auto const& token : tokens) bytes += bytes_of(token);
    return repaired_utf8(bytes);
  }
  std::string run;  // of byte tokens
  auto const end_run = [&] {
    std::string const repaired = repaired_utf8(run);
    if (repaired == run)
      text += run;
    else
      for (std::size_t i = 0; i < run.size(); ++i) text += kReplacement;
    run.clear();
  };
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (char byte = 0; is_byte_token(tokens[i], byte)) {
      run += byte;
      continue;
    }
    end_run();
    if (joins_with_spaces_ && i > 0) text += ' ';
    text += replaced_token(tokens[i]);
  }
  end_run();
  for (std::size_t i = 0; i < strip_start_ && text.starts_with(strip_content_); ++i)
    text.erase(0, strip_content_.size());
  return text;
}

// Byte-level: gives out whole characters of bytes_, one U+FFFD for each maximal invalid part, also for an unfinished
// character at the end of the text.
std::string TokenDecoder::Stream::take_byte_level(bool at_end) {
  std::string text;
  std::string_view rest = bytes_;
  while (!rest.empty()) {
    auto const [step, length] = utf8_step(rest);
    // The first two bytes of an encoded surrogate are known to be invalid, but their third belongs with them.
    bool const surrogate =
        rest.size() == 2 && rest[0] == '\xED' && step == Utf8Step::invalid && (rest[1] & 0xE0) == 0xA0;
    if ((step == Utf8Step::incomplete || surrogate) && !at_end) break;
    text += step == Utf8Step::character ? rest.substr(0, length) : kReplacement;
    rest.remove_prefix(length);
  }
  bytes_.erase(0, bytes_.size() - rest.size());
  return text;
}

// Byte tokens: gives out whole characters of the run; from the first doubtful byte on it holds the rest until the run
// ends, since a run that is not valid becomes one U+FFFD a byte.
std::string TokenDecoder::Stream::take_run(bool run_ends) {
  std::string text;
  std::string_view rest = bytes_;
  while (!run_ends && !rest.empty()) {
    auto const [step, length] = utf8_step(rest);
    if (step != Utf8Step::character || rest.substr(0, length) == kReplacement) break;
    text += rest.substr(0, length);
    rest.remove_prefix(length);
  }
  bytes_.erase(0, bytes_.size() - rest.size());
  if (!run_ends) return text;
  if (repaired_utf8(bytes_) == bytes_)
    text += bytes_;
  else
    for (std::size_t i = 0; i < bytes_.size(); ++i) text += kReplacement;
  bytes_.clear();
  return text;
}

std::string TokenDecoder::Stream::without_leading(std::string text) {
  while (strip_left_ > 0 && !text.empty()) {
    if (!text.starts_with(decoder_->strip_content_)) {
      strip_left_ = 0;
      break;
    }
    text.erase(0, decoder_->strip_content_.size());
    --strip_left_;
  }
  return text;
}

std::string TokenDecoder::Stream::push(std::string const& token) {
  if (decoder_->byte_level_) {
    bytes_ += decoder_->bytes_of(token);
    return take_byte_level(false);
  }
  std::string text;
  if (char byte = 0; decoder_->is_byte_token(token, byte)) {
    bytes_ += byte;
    text = take_run(false);
  } else {
    text = take_run(true);
    if (decoder_->joins_with_spaces_ && !first_) text += ' ';
    text += decoder_->replaced_token(token);
  }
  first_ = false;
  return without_leading(std::move(text));
}

std::string TokenDecoder::Stream::finish() {
  return decoder_->byte_level_ ? take_byte_level(true) : without_leading(take_run(true));
}

}  // namespace expertmesh
