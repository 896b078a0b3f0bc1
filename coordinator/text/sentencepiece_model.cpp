#include "coordinator/text/sentencepiece_model.h"

#include <bit>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string_view>

#include "common/base/error.h"
#include "coordinator/text/utf8.h"

namespace expertmesh {
namespace {

// The fields of one protobuf message, in order.
class Message {
 public:
  explicit Message(std::string_view bytes) : rest_(bytes) {}

  bool next() {
    if (rest_.empty()) return false;
    std::uint64_t const tag = varint();
    number_ = tag >> 3;
    wire_type_ = tag & 7;
    switch (wire_type_) {
      case 0:
        value_ = varint();
        return true;
      case 1:
        bytes_ = take(8);
        return true;
      case 2:
        bytes_ = take(varint());
        return true;
      case 5:
        bytes_ = take(4);
        return true;
      default:
        refuse_sentencepiece("malformed: wire type " + std::to_string(wire_type_));
    }
  }
  [[nodiscard]] std::uint64_t number() const { return number_; }
  [[nodiscard]] std::string_view bytes() const {
    expect(2);
    return bytes_;
  }
  [[nodiscard]] std::int32_t integer() const {
    expect(0);
    return static_cast<std::int32_t>(value_);
  }
  [[nodiscard]] bool flag() const { return integer() != 0; }
  [[nodiscard]] float real() const {
    expect(5);
    float value = 0;
    std::memcpy(&value, bytes_.data(), sizeof(value));
    return value;
  }

 private:
  void expect(std::uint64_t wire_type) const {
    if (wire_type_ != wire_type)
      refuse_sentencepiece("malformed: field " + std::to_string(number_) + " has the wrong wire type");
  }
  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
      auto const byte = static_cast<unsigned char>(rest_[0]);
      rest_.remove_prefix(1);
      value |= std::uint64_t{byte & 0x7FU} << shift;
      if (byte < 0x80) return value;
    }
    refuse_sentencepiece("malformed: ends in a number");
  }
  std::string_view take(std::uint64_t size) {
    if (size > rest_.size()) refuse_sentencepiece("malformed: ends in field " + std::to_string(number_));
    std::string_view const taken = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return taken;
  }
  std::string_view rest_;
  std::string_view bytes_;
  std::uint64_t number_ = 0;
  std::uint64_t wire_type_ = 0;
  std::uint64_t value_ = 0;
};

SentencePieceModel::Piece piece_of(std::string_view bytes, std::size_t id) {
  SentencePieceModel::Piece piece;
  for (Message field(bytes); field.next();) {
    if (field.number() == 1) piece.text = field.bytes();
    if (field.number() == 2) piece.score = field.real();
    if (field.number() == 3) {
      auto const type = field.integer();
      if (type < 1 || type > 6)
        refuse_sentencepiece("piece " + std::to_string(id) + " has type " + std::to_string(type));
      piece.type = static_cast<SentencePieceModel::Piece::Type>(type);
    }
  }
  if (piece.text.empty() || valid_utf8(piece.text) != piece.text.size())
    refuse_sentencepiece("piece " + std::to_string(id) + " is empty or no UTF-8");
  return piece;
}

void read_trainer(std::string_view bytes, SentencePieceModel& model) {
  auto const id = [](std::int32_t value) { return value < 0 ? std::nullopt : std::optional(value); };
  for (Message field(bytes); field.next();) {
    switch (field.number()) {
      case 3: {
        auto const type = field.integer();
        if (type < 1 || type > 4)
          refuse_sentencepiece("trainer_spec.model_type " + std::to_string(type) + " is not supported");
        model.type = static_cast<SentencePieceModel::Type>(type);
        break;
      }
      case 24:
        model.whitespace_is_suffix = field.flag();
        break;
      case 35:
        model.byte_fallback = field.flag();
        break;
      case 41:
        model.bos = id(field.integer());
        break;
      case 42:
        model.eos = id(field.integer());
        break;
      default:
        break;
    }
  }
}

void read_normalizer(std::string_view bytes, SentencePieceModel& model) {
  for (Message field(bytes); field.next();) {
    if (field.number() == 2) model.charsmap = field.bytes();
    if (field.number() == 3) model.add_dummy_prefix = field.flag();
    if (field.number() == 4) model.remove_extra_whitespaces = field.flag();
    if (field.number() == 5) model.escape_whitespaces = field.flag();
  }
}

}  // namespace

void refuse_sentencepiece(std::string const& what) {
  throw ModelError("tokenizer.model: " + what);
}

SentencePieceModel SentencePieceModel::load(std::filesystem::path const& path) {
  std::ifstream in(path, std::ios::binary);
  std::string const bytes{std::istreambuf_iterator<char>(in), {}};
  SentencePieceModel model;
  model.bos = 1;
  model.eos = 2;
  for (Message field(bytes); field.next();) {
    if (field.number() == 1) model.pieces.push_back(piece_of(field.bytes(), model.pieces.size()));
    if (field.number() == 2) read_trainer(field.bytes(), model);
    if (field.number() == 3) read_normalizer(field.bytes(), model);
    if (field.number() == 5)
      for (Message part(field.bytes()); part.next();)
        if (part.number() == 2 && !part.bytes().empty()) model.has_denormalizer = true;
  }
  if (model.pieces.empty()) refuse_sentencepiece("no pieces");
  bool found = false;
  for (std::size_t i = 0; i < model.pieces.size(); ++i)
    if (model.pieces[i].type == Piece::Type::unknown) {
      if (found) refuse_sentencepiece("two unknown pieces");
      found = true;
      model.unknown = static_cast<TokenId>(i);
    }
  if (!found) refuse_sentencepiece("no unknown piece");
  auto const is_control = [&](std::optional<TokenId> id) {
    return id && static_cast<std::size_t>(*id) < model.pieces.size() && model.pieces[*id].type == Piece::Type::control;
  };
  if (!is_control(model.bos)) model.bos.reset();
  if (!is_control(model.eos)) model.eos.reset();
  return model;
}

}  // namespace expertmesh
