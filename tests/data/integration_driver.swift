// Runs a generated file's functions on raw binary tensors, as integration_driver.cpp does; the same words.

import Foundation

func readBytes(_ path: String) -> [UInt8] {
  guard let data = FileManager.default.contents(atPath: path) else { return [] }
  return [UInt8](data)
}

func readWords(_ path: String) -> [UInt32] {
  let bytes = readBytes(path)
  return Swift.stride(from: 0, to: bytes.count, by: 4).map { start in
    (0..<4).reduce(UInt32(0)) { bits, k in bits | UInt32(bytes[start + k]) << UInt32(8 * k) }
  }
}

func readFloats(_ path: String) -> [Float] { readWords(path).map { bits in Float(bitPattern: bits) } }

func write(_ path: String, bytes: [UInt8]) throws { try Data(bytes).write(to: URL(fileURLWithPath: path)) }

func write(_ path: String, floats: [Float]) throws {
  try write(path, bytes: floats.flatMap { value in (0..<4).map { k in UInt8(truncatingIfNeeded: value.bitPattern >> UInt32(8 * k)) } })
}

func write(_ folder: String, tensor: Tensor) throws {
  try write("\(folder)/\(tensor.name).bin", floats: tensor.floats)
  print(tensor.name, tensor.shape.map { side in String(side) }.joined(separator: " "))
}

@main
enum Driver {
  static func main() {
    do {
      try drive(Array(CommandLine.arguments.dropFirst()))
    } catch {
      FileHandle.standardError.write(Data("\(error)\n".utf8))
      exit(1)
    }
  }
}
